"""`nnssl_pretrain` from stored volumes to an encoder file, and what it says to bad input."""

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pytest
import torch

from nnssl.commands import plan_and_preprocess, pretrain, weights
from nnssl.config import to_dict
from nnssl.data.stamp import write_stamp
from nnssl.encoders import ENCODERS
from nnssl.encoders.base import Encoder, IntensityRange
from nnssl.pretext import TASKS
from nnssl.recipe import PretrainRecipe
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.header import seen_cases
from nnssl.weights.identify import identify
from nnssl.weights.load import load_weights

PLANS = "nnsslPlans_vit_tiny_8"
TINY = ["steps=4", "save_every=2", "batch_size=2", "prototypes=32", "hidden=16", "bottleneck=8", "local_views=2"]


def plans(**changes: Any) -> dict[str, Any]:
    recipe = PretrainRecipe(global_crop=(16, 16, 16), local_crop=(8, 8, 8), steps=1000, batch_size=8)
    configuration = {
        "data_identifier": f"{PLANS}_pretrain",
        "preprocessor_name": "NnsslPreprocessor",
        "normalization_schemes": ["PercentileNormalization"],
        "median_image_size_in_voxels": [20, 22, 24],
        "resampling_fn_data": "resample_torch_fornnunet",
        "resampling_fn_data_kwargs": {"is_seg": False},
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [16, 16, 16],
    }
    section = {
        "version": 1,
        "encoder": "vit_tiny_8",
        "native_crop": [16, 16, 16],
        "intensity": to_dict(IntensityRange()),
        "orientation": "RAS",
        "axes": "XYZ",
        "pretrain": to_dict(recipe),
    }
    full = configuration | {"data_identifier": f"{PLANS}_3d_fullres"}
    return {"configurations": {"pretrain": configuration | changes, "3d_fullres": full}, "nnssl": section}


def add_dataset(root: Path, name: str, cases: Sequence[str], labelled: bool = True, **changes: Any) -> Path:
    folder = root / "preprocessed" / name
    stored = folder / f"{PLANS}_pretrain"
    stored.mkdir(parents=True)
    (folder / f"{PLANS}.json").write_text(json.dumps(plans(**changes)))
    for number, case in enumerate(cases):
        values = np.random.default_rng(number).random((1, 20, 22, 24), dtype=np.float32)
        blosc2.asarray(values, urlpath=str(stored / f"{case}.b2nd"), mode="w")
        if labelled:
            (folder / "gt_segmentations").mkdir(exist_ok=True)
            (folder / "gt_segmentations" / f"{case}.nii.gz").touch()
    write_stamp(folder, plans(**changes), "pretrain")
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, name in (("raw", "raw"), ("preprocessed", "preprocessed"), ("results", "results")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    add_dataset(tmp_path, "Dataset901_Labelled", [f"SECRETNAME_v1.{number}" for number in range(7)])
    return tmp_path


def run(*words: str) -> int:
    return pretrain.main(["901", *words, "-e", "vit_tiny_8", "-device", "cpu", "--set", *TINY])


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a refused command."""
    assert pretrain.main(list(words)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.slow
def test_a_run_writes_an_encoder_that_says_what_it_is_and_tells_no_names(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_dataset(root, "Dataset902_Unlabelled", ["SECRETNAME_a", "SECRETNAME_b"], labelled=False)
    assert run("902", "-f", "0", "-run", "mine") == 0
    text = capsys.readouterr().out
    folder = root / "results" / "pretrained" / "mine"
    assert "8 tokens" in text and "1 tokens" in text and str(folder) in text
    assert "encoder.safetensors" in text
    weights = read_weights(folder / "encoder.safetensors")
    header = weights.header
    assert header is not None and header.data is not None
    assert (header.encoder, header.task, header.steps) == ("vit_tiny_8", "threedino", 4)
    assert header.native_crop == (16, 16, 16) and header.spacing_mm == (1.0, 1.0, 1.0)
    held_out = json.loads((root / "preprocessed/Dataset901_Labelled/splits_final.json").read_text())[0]["val"]
    every = [f"SECRETNAME_v1.{number}" for number in range(7)]
    assert set(seen_cases(header.data, "Dataset901_Labelled", every)) == set(every) - set(held_out)
    assert len(held_out) == 2 and header.data.cases == 5 + 2
    for name in ("encoder.safetensors", "config.json", "log.jsonl"):
        content = (folder / name).read_bytes()
        assert b"SECRETNAME" not in content and str(root).encode() not in content, name
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3]
    assert {"loss", "dino", "ibot", "koleo", "lr"} <= set(records[0])
    assert (folder / "curves.png").is_file() and (folder / "checkpoint_latest.pt").is_file()


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_encoder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("-run", "whole") == 0
    code = (
        "import os, sys; from nnssl.commands import pretrain; from nnssl.trainers import pretrain_log\n"
        "draw = pretrain_log.draw_curves\n"
        "pretrain_log.draw_curves = lambda *words, **more: (draw(*words, **more), os._exit(9))\n"  # killed at a save
        "pretrain.main(sys.argv[1:])"
    )
    words = ["901", "-e", "vit_tiny_8", "-device", "cpu", "-run", "cut", "--set", *TINY]
    assert subprocess.run([sys.executable, "-c", code, *words], check=False, capture_output=True).returncode == 9
    assert run("-run", "cut") == 2  # exists
    assert run("-run", "cut", "--c") == 0
    results = root / "results" / "pretrained"
    whole, cut = (read_weights(results / name / "encoder.safetensors").tensors for name in ("whole", "cut"))
    assert all(np.array_equal(whole[name].numpy(), cut[name].numpy()) for name in whole)
    records = [json.loads(line)["step"] for line in (results / "cut" / "log.jsonl").read_text().splitlines()]
    assert records == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_continued_run_must_be_the_same_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-run", "mine") == 0
    capsys.readouterr()
    words = ["901", "-e", "vit_tiny_8", "-run", "mine", "-device", "cpu"]
    assert "run 'mine' exists in" in refusal(capsys, *words, "--set", *TINY)
    assert "steps=4 became 1000" in refusal(capsys, *words, "--c")
    assert "local_views=2 became 3" in refusal(capsys, *words, "--c", "--set", *TINY, "local_views=3")
    (root / "preprocessed/Dataset901_Labelled" / f"{PLANS}_pretrain" / "SECRETNAME_v1.3.b2nd").unlink()
    assert "started on 7 cases, of which 6" in refusal(capsys, *words, "--c", "--set", *TINY)


BAD_INPUT = {
    "no data set": ([], "no data set given"),
    "unknown data set": (["999"], "data set '999': no such folder"),
    "unknown task": (["901", "-t", "jigsaw"], "known tasks: threedino"),
    "unknown encoder": (["901", "-e", "vit_huge_8"], "known encoders: vit_tiny_16"),
    "no plans": (["901", "-e", "vit_small_8"], "nnssl_plan_and_preprocess -d 901 -e vit_small_8"),
    "plans of another encoder": (["901", "-e", "vit_base_8", "-p", PLANS], "are for vit_tiny_8"),
    "crop not a multiple": (["901", "-p", PLANS, "--set", "global_crop=[20,16,16]"], "multiple of 8 voxels"),
    "unknown setting": (["901", "-p", PLANS, "--set", "learning=1"], "known: global_crop"),
    "no value": (["901", "-p", PLANS, "--set", "steps"], "expected key=value"),
    "bad value": (["901", "-p", PLANS, "--set", "steps=many"], "setting 'steps': expected int, got 'many'"),
    "bad value of the task": (["901", "-p", PLANS, "--set", "prototypes=-3"], "prototypes=-3: must be above 0"),
    "no such fold": (["901", "-p", PLANS, "-f", "9"], "fold 9: this data set has 5 folds"),
    "nothing to continue": (["901", "-p", PLANS, "--c"], "has no checkpoint_latest.pt"),
    "bad run name": (["901", "-p", PLANS, "-run", "a/b"], "-run 'a/b': use letters"),
    "all images too small": (["901", "-p", PLANS, "-min_side", "21"], "none with every side of at least 21"),
}


@pytest.mark.parametrize("words", BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_ends_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], words: tuple[list[str], str]
) -> None:
    given, expected = words
    assert expected in refusal(capsys, *given)
    assert not (root / "results" / "pretrained").exists()


def test_data_sets_that_were_planned_differently_are_refused_with_the_difference(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_dataset(root, "Dataset903_Coarse", ["a"], spacing=[1.0, 1.0, 3.0])
    line = refusal(capsys, "901", "903", "-p", PLANS)
    assert "configuration.spacing [1.0, 1.0, 1.0] and [1.0, 1.0, 3.0]" in line
    assert "nnssl_plan_and_preprocess -d 901 903 -e vit_tiny_8" in line


def test_data_sets_with_other_sizes_and_channels_may_be_mixed(root: Path) -> None:
    schemes = ["PercentileNormalization"] * 2
    add_dataset(
        root, "Dataset904_TwoChannels", ["a"], normalization_schemes=schemes, median_image_size_in_voxels=[9, 9, 9]
    )
    plan = pretrain.read_plan(["Dataset901_Labelled", "Dataset904_TwoChannels"], PLANS)
    assert plan.datasets == ("Dataset901_Labelled", "Dataset904_TwoChannels")


def test_missing_volumes_name_the_command_that_makes_them(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (root / "preprocessed/Dataset901_Labelled" / f"{PLANS}_pretrain").iterdir():
        file.unlink()
    assert "nnssl_plan_and_preprocess -d 901 -e vit_tiny_8 -c pretrain" in refusal(capsys, "901", "-p", PLANS)


def test_volumes_of_another_plan_are_refused_with_the_difference(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = root / "preprocessed/Dataset901_Labelled"
    (folder / f"{PLANS}.json").write_text(json.dumps(plans(spacing=[1.0, 1.0, 2.0])))  # planned again with --no_pp
    line = refusal(capsys, "901", "-p", PLANS)
    assert "spacing was [1.0, 1.0, 1.0] and is now [1.0, 1.0, 2.0]" in line
    assert "nnssl_plan_and_preprocess -d 901 -e vit_tiny_8 -c pretrain again" in line


def test_volumes_of_an_unfinished_preprocessing_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "preprocessed/Dataset901_Labelled" / f"{PLANS}_pretrain.stamp.json").unlink()
    assert "preprocessing did not finish" in refusal(capsys, "901", "-p", PLANS)


def test_a_stamp_is_not_listed_as_a_plan(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"there are: {PLANS};" in refusal(capsys, "901", "-p", "nix")


def test_a_validation_case_that_fine_tuning_lacks_for_now_stays_held_out(root: Path) -> None:
    folder, cases = root / "preprocessed/Dataset901_Labelled", [f"SECRETNAME_v1.{number}" for number in range(7)]
    (folder / "splits_final.json").write_text(json.dumps([{"train": cases[2:], "val": cases[:2]}]))
    (folder / f"{PLANS}_3d_fullres").mkdir()
    for case in cases[1:]:  # case 0 failed in the preprocessing of 3d_fullres
        (folder / f"{PLANS}_3d_fullres" / f"{case}.b2nd").touch()
    (stored,) = pretrain.folders_of(pretrain.read_plan([folder.name], PLANS), 0)
    assert stored.cases == cases[2:]


def test_a_damaged_volume_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "preprocessed/Dataset901_Labelled" / f"{PLANS}_pretrain" / "SECRETNAME_v1.2.b2nd").write_bytes(b"damaged")
    assert "SECRETNAME_v1.2.b2nd" in refusal(capsys, "901", "-p", PLANS)


def test_stock_plans_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "preprocessed/Dataset901_Labelled/nnUNetPlans.json").write_text(json.dumps({"configurations": {}}))
    assert "no 'nnssl' section" in refusal(capsys, "901", "-p", "nnUNetPlans")


@pytest.mark.parametrize(
    ("spacing", "axis"), [([1, 1, 1], 2), ([5, 1, 1], 0), ([0.7, 2.0, 0.7], 1), ([1, 1.005, 1], 2)]
)
def test_depth_is_the_axis_that_the_plan_says(root: Path, spacing: list[float], axis: int) -> None:
    add_dataset(root, "Dataset905_Depth", ["a"], spacing=spacing)
    assert pretrain.read_plan(["Dataset905_Depth"], PLANS).depth_axis == axis


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        pretrain.main(["--help"])
    assert end.value.code == 0
    assert "nnssl_pretrain 4 202 -t threedino" in capsys.readouterr().out


def test_list_shows_sources_claims_defaults_and_encoders(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--list"]) == 0
    text = capsys.readouterr().out
    flat = " ".join(text.split())
    for name in TASKS:
        assert f"\n  {name} " in text
    for name in ENCODERS:
        assert f"\n  {name} " in text
    assert "arXiv:2104.14294" in flat and "norm[0-2].*" in flat
    assert (
        "base_lr 0.002 0.0002" in flat
        and "lr_rule sqrt constant" in flat
        and "weight_decay [0.04,0.4] [0.01,0.01]" in flat
    )
    assert "prototypes=65536" in flat and "mask_ratio=0.75" in flat
    assert max(map(len, text.splitlines())) <= 200


def test_list_of_one_task_leaves_the_others_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main(["--list", "-t", "smit"]) == 0
    text = capsys.readouterr().out
    assert "patch_weight=0.1" in text and "rotation" not in text and "local_views" not in text
    assert "known tasks: threedino" in refusal(capsys, "--list", "-t", "jigsaw")


def test_the_papers_recipe_of_a_task_goes_over_the_plans_and_below_set(root: Path) -> None:
    def recipe_of(*words: str) -> PretrainRecipe:
        words_of = {"datasets": ["901"], "e": "vit_tiny_8", "min_side": 0, "set": [], "weights": []}
        parser = argparse.Namespace(**dict.fromkeys(("t", "p", "f", "stage", "pretrained_run")) | words_of)
        for key, value in zip(words[::2], words[1::2], strict=True):
            setattr(parser, key, [value] if key == "set" else value)
        return pretrain._settings(parser)[0].recipe

    plan, smit, own = recipe_of(), recipe_of("t", "smit"), recipe_of("t", "smit", "set", "base_lr=1e-3")
    assert (plan.base_lr, plan.lr_rule, plan.steps, plan.batch_size) == (2e-3, "sqrt", 1000, 8)
    assert (smit.base_lr, smit.lr_rule, smit.weight_decay, smit.layer_decay) == (2e-4, "constant", (0.01, 0.01), 1.0)
    assert (smit.global_crop, smit.steps, smit.batch_size) == (plan.global_crop, 1000, 8)
    assert own.base_lr == 1e-3 and own.lr_rule == "constant"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TASKS if name != "threedino"])
def test_every_task_runs_from_stored_volumes_and_saves_what_it_was(root: Path, name: str) -> None:
    small = [word for word in (*TINY, "projection=8") if pretrain.knows(TASKS[name].Config, word)]
    words = [*small, "steps=2", "save_every=1", "batch_size=2"]
    assert pretrain.main(["901", "-t", name, "-e", "vit_tiny_8", "-device", "cpu", "-run", "one", "--set", *words]) == 0
    folder = root / "results" / "pretrained" / "one"
    header = read_weights(folder / "encoder.safetensors").header
    assert header is not None and header.task == name and header.plan["recipe"]["lr_rule"] == "constant"
    saved = json.loads((folder / "config.json").read_text())
    assert saved["recipe"]["base_lr"] == 2e-4 and saved["task_settings"].keys() == {
        field.name for field in dataclasses.fields(TASKS[name].Config)
    }
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert {"loss", "feature_std", "effective_rank", "gradient/encoder"} <= set(records[-1])


@pytest.mark.slow
def test_an_encoder_with_options_is_built_as_the_plan_says(root: Path) -> None:
    folder = root / "preprocessed/Dataset901_Labelled"
    changed = plans()
    changed["nnssl"]["encoder_options"] = {"depth": 2, "dim": 48}
    (folder / f"{PLANS}.json").write_text(json.dumps(changed))
    assert run("-run", "mine") == 0
    weights = read_weights(root / "results/pretrained/mine/encoder.safetensors")
    assert weights.header is not None and weights.header.encoder_options == {"depth": 2, "dim": 48}
    assert weights.tensors["blocks.1.norm1.weight"].shape == (48,) and "blocks.2.norm1.weight" not in weights.tensors


@pytest.mark.slow
def test_real_scans_go_from_raw_folder_to_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, name = shared_data / "Dataset004_Hippocampus", "Dataset004_Hippocampus"
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    description = json.loads((source / "dataset.json").read_text()) | {"numTraining": 6}
    cases = [file.name.removesuffix(".nii.gz") for file in sorted((source / "labelsTr").glob("*.nii.gz"))[:6]]
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (tmp_path / "raw" / name / folder).mkdir(parents=True)
        for case in cases:
            (tmp_path / "raw" / name / folder / f"{case}{ending}").symlink_to(source / folder / f"{case}{ending}")
    (tmp_path / "raw" / name / "dataset.json").write_text(json.dumps(description))
    planned = plan_and_preprocess.main(["-d", "4", "-e", "vit_tiny_16", "-c", "pretrain", "-np", "1"])
    assert planned == 0
    small = ["steps=3", "batch_size=2", "prototypes=64", "hidden=32", "bottleneck=16", "local_views=3"]
    assert pretrain.main(["4", "-e", "vit_tiny_16", "-f", "1", "-device", "cpu", "--set", *small]) == 0
    folder = tmp_path / "results" / "pretrained" / "threedino_vit_tiny_16_004_fold1"
    header = read_weights(folder / "encoder.safetensors").header
    assert header is not None and header.data is not None
    assert 4 <= header.data.cases <= 5 and header.steps == 3
    for file in ("encoder.safetensors", "config.json", "log.jsonl"):
        content = (folder / file).read_bytes()
        assert b"hippocampus_0" not in content and str(tmp_path).encode() not in content
    splits = json.loads((tmp_path / "preprocessed" / name / "splits_final.json").read_text())
    assert sorted(splits[1]["train"] + splits[1]["val"]) == cases
    assert len(seen_cases(header.data, name, splits[1]["train"])) == len(splits[1]["train"])
    assert seen_cases(header.data, name, splits[1]["val"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_pretrains_comes_back_from_an_nnunet_checkpoint_with_the_same_features(
    root: Path, task: str
) -> None:
    small = [word for word in TINY if word.partition("=")[0] in settings_of(task)]
    words = ["901", "-t", task, "-e", "vit_tiny_8", "-device", "cpu", "-run", "whole_way"]
    assert pretrain.main([*words, "--set", *small, "steps=2"]) == 0
    file = root / "results" / "pretrained" / "whole_way" / "encoder.safetensors"
    assert weights.main(["export", str(file), "--format", "nnunet", "-o", str(root / "out.pth")]) == 0
    first, back = (built_from(path) for path in (file, root / "out.pth"))
    volume = torch.rand(1, 1, 16, 24, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        pairs = zip(first(volume).maps, back(volume).maps, strict=True)
        assert all(torch.allclose(one, other, rtol=0, atol=1e-6) for one, other in pairs)
    assert first.state_dict().keys() == back.state_dict().keys()


def settings_of(task: str) -> set[str]:
    return {entry.name for kind in (PretrainRecipe, TASKS[task].Config) for entry in dataclasses.fields(kind)}


def built_from(path: Path) -> Encoder:
    found = read_weights(path)
    encoder = identify(found).build().eval()
    report = load_weights(encoder, found)
    assert not report.missing and not report.unexpected
    return encoder
