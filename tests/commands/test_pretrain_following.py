"""`nnssl_pretrain` with probes, pictures and loggers: what it writes, what it refuses, and that the run is the same."""

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch

from nnssl.data.volumes import StoredVolumes
from nnssl.trainers.checkpoints import load_latest
from nnssl.trainers.following import central_crops, shown_volumes
from nnssl.trainers.pretrain_plan import folders_of, read_plan
from nnssl.trainers.pretrain_run import RunSettings
from tests.commands.test_pretrain import PLANS, TINY, add_dataset, refusal, root, run  # noqa: F401 - root is a fixture

LABELS = {"labels": {"background": 0, "bright": 1}}


@pytest.fixture
def labelled(root: Path) -> Path:  # noqa: F811
    """The same data set with label maps beside the stored volumes: the brighter half of the voxels."""
    folder = root / "preprocessed" / "Dataset901_Labelled"
    (folder / "dataset.json").write_text(json.dumps(LABELS))
    for path in list((folder / f"{PLANS}_pretrain").glob("*.b2nd")):
        labels = (np.asarray(blosc2.open(str(path))[:]) > 0.5).astype(np.int16)
        blosc2.asarray(labels, urlpath=str(path.with_name(f"{path.stem}_seg.b2nd")), mode="w")
    return root / "results" / "pretrained"


@pytest.mark.slow
def test_a_run_that_is_probed_and_pictured_trains_the_same_weights(labelled: Path) -> None:
    watched = ["-probe_dataset", "901", "-probe_every", "2", "-f", "0"]
    assert run("-run", "plain", "-probe_every", "0", "-f", "0") == 0
    assert run("-run", "watched", *watched) == 0
    (_, plain), (_, seen) = (load_latest(labelled / name) for name in ("plain", "watched"))
    assert all(torch.equal(value, seen["task"][name]) for name, value in plain["task"].items())
    assert not (labelled / "plain" / "pictures").exists()
    pictures = sorted(path.name for path in (labelled / "watched" / "pictures").iterdir())
    assert pictures == ["step00000002.png", "step00000004.png"]
    records = [json.loads(line) for line in (labelled / "watched" / "log.jsonl").read_text().splitlines()]
    probes = {record["step"]: record for record in records if "probe/knn" in record}
    assert set(probes) == {1, 3}
    assert all(0 <= probe[name] <= 1 for probe in probes.values() for name in ("probe/knn", "probe/linear_bright"))
    for name in ("log.jsonl", "config.json"):
        assert "SECRETNAME" not in (labelled / "watched" / name).read_text()


@pytest.mark.slow
def test_a_finished_part_is_continued_with_other_watching(labelled: Path) -> None:
    words = ["-run", "mine", "-probe_dataset", "901"]
    assert run(*words) == 0
    assert run(*words[:2], "--c", "-logger", "tensorboard", "-probe_every", "4") == 0  # nothing is left to do


REFUSED = {
    "unknown logger": (["-logger", "comet"], "-logger comet: unknown; known are tensorboard, wandb, mlflow"),
    "between saves": (["-probe_every", "3"], "-probe_every 3: the encoder is looked at when it is saved"),
    "unknown data set": (["-probe_dataset", "999"], "data set '999': no such folder"),
    "no label maps": (["-probe_dataset", "901"], "-probe_dataset Dataset901_Labelled: 0 stored case(s) with labels"),
    "not planned": (["-probe_dataset", "906"], "nnssl_plan_and_preprocess -d 906 -e vit_tiny_8"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_watched_is_refused_before_training(
    root: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    words, said = REFUSED[name]
    (root / "preprocessed" / "Dataset901_Labelled" / "dataset.json").write_text(json.dumps(LABELS))
    (root / "preprocessed" / "Dataset906_NotPlanned").mkdir()
    assert said in refusal(capsys, "901", "-e", "vit_tiny_8", "-device", "cpu", *words, "--set", *TINY)
    assert not (root / "results" / "pretrained").exists()


def test_a_probe_set_of_another_intensity_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    folder = add_dataset(root, "Dataset907_Window", ["a"])
    plans = json.loads((folder / f"{PLANS}.json").read_text())
    plans["nnssl"]["intensity"] |= {"kind": "window", "low": -175.0, "high": 250.0}
    (folder / f"{PLANS}.json").write_text(json.dumps(plans))
    line = refusal(capsys, "901", "-e", "vit_tiny_8", "-device", "cpu", "-probe_dataset", "907", "--set", *TINY)
    assert "say intensity window:-175,250, those of the run percentile:0.05,99.95" in line


def test_the_pictured_scans_are_the_validation_cases_of_the_fold_or_else_those_of_the_run(root: Path) -> None:  # noqa: F811
    plan = read_plan(["Dataset901_Labelled"], PLANS)
    for fold in (None, 0):
        settings = RunSettings("simmim", plan, plan.recipe, fold)
        volumes = StoredVolumes(folders_of(plan, fold))
        shown = shown_volumes(settings, volumes, ())
        if fold is None:
            assert shown is volumes
    held_out = json.loads((root / "preprocessed/Dataset901_Labelled/splits_final.json").read_text())[0]["val"]
    assert [case for _, case in shown.cases] == held_out
    assert [crop.shape for crop in central_crops(shown, (16, 40, 16))] == [(1, 16, 40, 16)] * 2


def test_a_pictured_crop_is_the_middle_of_the_scan_with_background_around_it(root: Path) -> None:  # noqa: F811
    volumes = StoredVolumes(folders_of(read_plan(["Dataset901_Labelled"], PLANS), None))  # 20 x 22 x 24 voxels
    crop = central_crops(volumes, (16, 32, 24))[0][0]
    whole = volumes.volume(0)[:][0]
    assert torch.equal(crop[:, 5:27], whole[2:18])
    assert not crop[:, :5].any() and not crop[:, 27:].any()
