"""The whole road on real scans, through the commands that a user types."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = 8


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Output folder of `nnssl_demo --raw` on a few hippocampus scans, with the smallest numbers of steps."""
    shared = Path(os.environ.get("NNSSL_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    source = shared / "data" / "nnUNet_raw" / "Dataset004_Hippocampus"
    if not source.is_dir():
        pytest.skip(f"real scans are absent: {source} (set NNSSL_SHARED)")
    folder = tmp_path_factory.mktemp("road")
    raw = folder / "planted_path" / "Dataset004_Hippocampus"
    for kind in ("imagesTr", "labelsTr"):
        (raw / kind).mkdir(parents=True)
    for label in sorted((source / "labelsTr").glob("*.nii.gz"))[:CASES]:
        case = label.name.removesuffix(".nii.gz")
        (raw / "labelsTr" / f"planted_{label.name}").symlink_to(label)
        (raw / "imagesTr" / f"planted_{case}_0000.nii.gz").symlink_to(source / "imagesTr" / f"{case}_0000.nii.gz")
    description = json.loads((source / "dataset.json").read_text()) | {"numTraining": CASES}
    (raw / "dataset.json").write_text(json.dumps(description))
    command = [Path(sys.executable).parent / "nnssl_demo", "--raw", raw, "-o", folder / "out", "-device", "cpu"]
    smallest = ["-pretrain_steps", "2", "-epochs", "1", "-iterations", "2"]
    done = subprocess.run([*command, *smallest], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "out" / "printed.txt").write_text(done.stdout)
    return folder / "out"


@pytest.mark.slow
def test_the_road_ends_in_a_table_with_both_encoders_and_a_picture(road: Path) -> None:
    printed = (road / "printed.txt").read_text()
    assert "| pretrained (3DINO) |" in printed and "| random " in printed
    assert len(list((road / "evaluation").glob("**/overlay_*.png"))) >= 2
    runs = json.loads((road / "evaluation" / "evaluation.json").read_text())["runs"]
    held_out = json.loads((road / "nnUNet_preprocessed/Dataset004_Hippocampus/splits_final.json").read_text())[0]["val"]
    assert sorted(runs[0]["cases"]) == sorted(held_out)


@pytest.mark.slow
def test_shared_files_name_neither_cases_nor_paths(road: Path) -> None:
    run = road / "nnUNet_results" / "pretrained" / "demo"
    plans = road / "nnUNet_preprocessed" / "Dataset004_Hippocampus" / "nnsslPlans_vit_tiny_8.json"
    shared = [run / "encoder.safetensors", run / "config.json", run / "log.jsonl", plans]
    shared += list((road / "nnUNet_results").glob("Dataset004_Hippocampus/*/*.json"))
    for file in shared:
        assert b"planted" not in file.read_bytes(), file


@pytest.mark.slow
def test_training_on_another_fold_than_pretraining_left_out_is_refused(road: Path) -> None:
    weights = road / "nnUNet_results/pretrained/demo/encoder.safetensors"
    environment = os.environ | {
        name: str(road / name) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    }
    command = [Path(sys.executable).parent / "nnssl_train", "4", "3d_fullres", "1", "-p", "nnsslPlans_vit_tiny_8"]
    options = ["-pretrained_weights", weights, "-run", "overlap", "-device", "cpu"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "were seen in pretraining" in done.stderr and len(done.stderr.strip().splitlines()) == 1
