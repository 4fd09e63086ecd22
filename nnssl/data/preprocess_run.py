"""Preprocessing of a data set: which cases must be (re)done, in processes or on a cluster, in parts, and the stamp.

Every stored case holds a key of the plan and of its source files. A rerun, after a kill or with new scans, does only
the cases whose key differs; the result is the same bit for bit. The stamp is written when every case was tried.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nnssl.data.case_memory import bytes_needed
from nnssl.data.case_store import remove_case, remove_partial, stored_identifiers, stored_key
from nnssl.data.fingerprint import load_fingerprint
from nnssl.data.intake import RawDataset
from nnssl.data.parallel import Terms, map_cases
from nnssl.data.stamp import remove_stamp, what_volumes_depend_on, write_stamp
from nnssl.dataset_conversion.raw_dataset import Case
from nnssl.paths import atomic_write, load_json, preprocessed_folder, save_json

VERSION = 2  # of what is stored under an unchanged plan; raise it when the arithmetic changes
PARTS = ".parts"
UNLABELLED = "pretrain"  # the configuration that also takes cases without a label map


class Target(NamedTuple):
    """Where one configuration of a case is stored."""

    configuration: str
    folder: Path
    key: str


class Request(NamedTuple):
    """How a data set is preprocessed.

    configurations: names.
    processes: worker processes here.
    part: (number, of how many): of an array job, number 0 is the first.
    scheduler: of a Dask cluster, instead of processes here.
    fail_fast: stop at the first case that fails.
    """

    configurations: tuple[str, ...]
    processes: int = 1
    part: tuple[int, int] = (0, 1)
    scheduler: str | None = None
    fail_fast: bool = False


def run_cases(store: Callable[..., None], raw: RawDataset, plans: Any, request: Request) -> dict[str, str]:
    """Store all usable cases of a data set, or of one part of it, that are not stored yet as the plan says.

    Cases that the fingerprint found bad are left out; what is stored of cases that are no longer usable, or that fail,
    is removed.

    Args:
        store: `store(case, targets, plans, dataset_json)`, run in worker processes.
        raw: the data set.
        plans: an NnsslPlansManager.
        request: how.

    Returns:
        Cases that failed, with one line each.
    """
    folders = {name: _folder(raw, plans, name) for name in request.configurations}
    for name, folder in folders.items():
        remove_stamp(folder.parent, plans.plans, name)
        _part_record(folder, request.part).unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        for identifier in stored_identifiers(folder) - {case.identifier for case in usable_cases(raw, name)}:
            remove_case(folder, identifier)
    cases, targets = _open_work(raw, plans, request, folders)
    terms = Terms(
        lambda key: bytes_needed(cases[key], [plans.plans["configurations"][name] for name in folders]),
        request.fail_fast,
        request.scheduler,
    )
    jobs = {key: (cases[key], tuple(found), plans, raw.dataset_json) for key, found in targets.items() if found}
    title = f"preprocess {raw.name} {' '.join(folders)}"
    failures = map_cases(store, jobs, processes=request.processes, title=title, terms=terms).failures
    for folder in folders.values():
        remove_partial(folder, cases)
    if not (failures and request.fail_fast):
        for name, folder in folders.items():
            _finish_part(folder, plans.plans, name, request.part)
    return failures


def usable_cases(raw: RawDataset, configuration_name: str) -> list[Case]:
    """Cases that passed the check of the fingerprint; `pretrain` also takes cases without a label of a labelled set."""
    bad = load_fingerprint(raw.name).bad_cases
    needs_label = raw.labelled and configuration_name != UNLABELLED
    return [case for case in raw.cases if case.identifier not in bad and not (needs_label and case.label is None)]


def copy_labels(raw: RawDataset) -> None:
    """Copy new or changed label maps of usable cases to gt_segmentations, where nnU-Net's validation reads them."""
    folder = preprocessed_folder() / raw.name / "gt_segmentations"
    labels = [(case.identifier, case.label) for case in usable_cases(raw, UNLABELLED) if case.label is not None]
    for identifier, label in labels:
        target = folder / f"{identifier}{raw.dataset_json['file_ending']}"
        if not target.is_file() or target.stat().st_mtime < label.stat().st_mtime:
            with atomic_write(target) as temporary:  # other parts of an array job may do the same
                shutil.copyfile(label, temporary)


def case_key(case: Case, plans: dict[str, Any], configuration: str, dataset_json: dict[str, Any]) -> str:
    """Changes when the stored volumes of a case would: with the plan, the labels, or size or time of a source file."""
    files = case.images if case.label is None else (*case.images, case.label)
    sources = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    labels = {key: dataset_json.get(key) for key in ("labels", "regions_class_order")}
    made_of = [VERSION, what_volumes_depend_on(plans, configuration), labels, case.label is None, sources]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:32]


def _open_work(
    raw: RawDataset, plans: Any, request: Request, folders: dict[str, Path]
) -> tuple[dict[str, Case], dict[str, list[Target]]]:
    """Cases of this part, and what each of them still has to be stored for; its outdated files are removed."""
    number, parts = request.part
    mine = {case.identifier: case for case in raw.cases[number::parts]}
    targets: dict[str, list[Target]] = {}
    for name, folder in folders.items():
        remove_partial(folder, mine)
        for case in usable_cases(raw, name):
            if case.identifier not in mine:
                continue
            key = case_key(case, plans.plans, name, raw.dataset_json)
            targets.setdefault(case.identifier, [])
            if stored_key(folder, case.identifier) != key:
                remove_case(folder, case.identifier)
                targets[case.identifier].append(Target(name, folder, key))
    return {key: mine[key] for key in targets}, targets


def _finish_part(folder: Path, plans: dict[str, Any], name: str, part: tuple[int, int]) -> None:
    """Write the stamp when this was the last part; until then, record that this part was tried."""
    parts = part[1]
    if parts > 1:
        planned = json.loads(json.dumps(what_volumes_depend_on(plans, name)))
        save_json(planned, _part_record(folder, part))
        records = [_part_record(folder, (other, parts)) for other in range(parts)]
        if not all(record.is_file() and load_json(record) == planned for record in records):
            return
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    write_stamp(folder.parent, plans, name)


def _part_record(folder: Path, part: tuple[int, int]) -> Path:
    return folder / PARTS / f"{part[0]}_of_{part[1]}.json"


def _folder(raw: RawDataset, plans: Any, name: str) -> Path:
    return preprocessed_folder() / raw.name / plans.get_configuration(name).data_identifier
