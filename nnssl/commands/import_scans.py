"""`nnssl_import`: any folder of scans becomes a raw nnU-Net data set of neutrally named cases."""

import argparse
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnssl.commands import command_line
from nnssl.data.intake.choose import MIN_SLICES, Taken, choose, examine_all
from nnssl.data.intake.collection import Collection
from nnssl.data.intake.folders import open_collection
from nnssl.data.intake.pretrain_data import write_pretrain_data
from nnssl.data.intake.report import SHOWN, printable, table
from nnssl.data.intake.write import damaged, write_raw_folder, written_sources
from nnssl.data.parallel import default_processes
from nnssl.paths import raw_folder

TABLE_FILE = "nnssl_import.txt"
EXAMPLES = """  nnssl_import /data/study -d 301 -n Brains                       DICOM, NIfTI, NRRD and MHA, also mixed
  nnssl_import /data/bids -d 302 -n Bids --exclude '*_bold.nii.gz' func
  nnssl_import /data/ct -d 303 -n Trunks --modality CT --min_slices 25
  nnssl_import pretrain_data.json -d 304 -n OpenMind              MIC-DKFZ's list of images
  nnssl_import /data/study -d 305 -n Study --pretrain_data out.json   and writes such a list
then nnssl_plan_and_preprocess -d 301"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    return command_line.run(import_scans, command(), argv)


def command() -> argparse.ArgumentParser:
    """The command line."""
    words = command_line.parser("nnssl_import", __doc__ or "", EXAMPLES)
    add = words.add_argument
    add(
        "folder",
        metavar="FOLDER",
        help="nnU-Net raw folder, BIDS tree, DICOM study, any folder of .nii .nii.gz .nrrd .mha .mhd files, or a "
        "pretrain_data.json",
    )
    add("-d", type=int, required=True, metavar="NUMBER", help="[REQUIRED] number of the new data set, 1 to 999")
    add("-n", required=True, metavar="NAME", help="[REQUIRED] its name; cases are called NAME_0001, NAME_0002, ...")
    add(
        "--modality",
        default="",
        metavar="WORD",
        help="[OPTIONAL] CT, MRI, PET, ...: what the scans are; those whose source says another are left out",
    )
    add(
        "--min_slices",
        type=int,
        default=MIN_SLICES,
        metavar="N",
        help=f"[OPTIONAL] leave out volumes with a side below N voxels; default {MIN_SLICES} (3DINO pretrains on 25 "
        "and more: nnssl_pretrain -min_side 25)",
    )
    add(
        "--exclude",
        nargs="+",
        action="extend",
        default=[],
        metavar="GLOB",
        help="[OPTIONAL] leave out files whose path, or a part of it, matches; quote it",
    )
    add("--pretrain_data", metavar="FILE", help="[OPTIONAL] also list the new data set for MIC-DKFZ's nnssl")
    add("-np", type=int, metavar="N", help="[OPTIONAL] processes; default at most 2, for memory")
    return words


def import_scans(arguments: argparse.Namespace) -> int:
    """Returns 0, or 1 if damaged scans were left out; they are listed."""
    processes = default_processes() if arguments.np is None else arguments.np
    target = _target(arguments, processes)
    collection = open_collection(Path(arguments.folder), exclude=arguments.exclude, processes=processes)
    volumes, left_out = examine_all(collection, processes)
    taken = choose(volumes, left_out, name=arguments.n, modality=arguments.modality, min_slices=arguments.min_slices)
    if taken.cases:
        taken = _write(target, collection, taken, processes)
    print(f"{printable(arguments.folder)} ({collection.kind})\n{table(taken, SHOWN)}\n")
    if not taken.cases:
        raise ValueError(f"importing {printable(arguments.folder)}: no volume could be taken; the table above says why")
    if arguments.pretrain_data:
        write_pretrain_data(
            written_sources(target, taken), Path(arguments.pretrain_data), number=arguments.d, name=target.name
        )
        print(f"wrote {arguments.pretrain_data}")
    channels = collection.labels.get("channel_names")
    print(f"channels {channels}: as they were" if channels else f"channel {taken.channel!r}: {taken.why}")
    print(f"wrote {target} ({TABLE_FILE}: the whole table); next: nnssl_plan_and_preprocess -d {arguments.d}")
    return 1 if any(line.damaged for line in taken.left_out) else 0


def _target(arguments: argparse.Namespace, processes: int) -> Path:
    """The folder to write, after a check of the flags."""
    if processes < 1:
        raise ValueError(f"-np {processes}: give 1 or more processes")
    if not 1 <= arguments.d <= 999:
        raise ValueError(f"-d {arguments.d}: the number of a data set must lie in 1 to 999")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", arguments.n):
        raise ValueError(f"-n {arguments.n!r}: give letters and digits that begin with a letter, for example Brains")
    if arguments.min_slices < 1:
        raise ValueError(f"--min_slices {arguments.min_slices}: give 1 or more")
    target = raw_folder() / f"Dataset{arguments.d:03d}_{arguments.n}"
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        for folder in Path(os.environ.get(variable) or target.parent).glob(f"{target.name[:11]}*"):
            if any(folder.iterdir()):
                raise ValueError(f"-d {arguments.d} is taken: {folder}; choose another number, or remove it first")
    return target


def _write(target: Path, collection: Collection, taken: Taken, processes: int) -> Taken:
    """Write beside the target and rename at the end: a stopped import leaves no half data set."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        failures = write_raw_folder(partial, collection, taken, processes)
        cases = {name: volume for name, volume in taken.cases.items() if name not in failures}
        taken = replace(taken, cases=cases, left_out=(*taken.left_out, *damaged(failures, taken)))
        if cases:
            (partial / TABLE_FILE).write_text(f"{collection.kind}\n{table(taken)}\n", encoding="utf-8")
            if target.exists():
                target.rmdir()
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return taken
