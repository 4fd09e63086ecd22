"""Weights of data sets and lists of held-out cases, from the words of the command to the samples."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from nnssl.commands import pretrain
from nnssl.trainers.pretrain_plan import folders_of, read_plan, weighted
from nnssl.weights.encoder_file import read_weights
from nnssl.weights.header import seen_cases
from tests.commands.test_pretrain import PLANS, TINY, add_dataset

FIRST, SECOND = "Dataset911_First", "Dataset912_Second"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    add_dataset(tmp_path, FIRST, ["SECRET_a", "SECRET_b", "SECRET_c"])
    add_dataset(tmp_path, SECOND, ["SECRET_a", "SECRET_d"], labelled=False)
    return tmp_path


def cases(exclusions: Sequence[str], fold: int | None = None) -> list[list[str]]:
    plan = read_plan([FIRST, SECOND], PLANS)
    return [[case[-1] for case in folder.cases] for folder in folders_of(plan, fold, exclusions)]


def test_excluded_cases_are_not_read_beside_those_of_a_fold(root: Path) -> None:
    assert cases([]) == [["a", "b", "c"], ["a", "d"]]
    assert cases(["911/SECRET_a"]) == [["b", "c"], ["a", "d"]]
    every = [f"SECRET_{letter}" for letter in "abc"]
    splits = [{"train": every[:2], "val": every[2:]}]
    (root / "preprocessed" / FIRST / "splits_final.json").write_text(json.dumps(splits))
    assert cases(["SECRET_a"], fold=0) == [["b"], ["d"]]


def test_nothing_left_is_said_with_the_flags(root: Path) -> None:
    with pytest.raises(ValueError, match="-exclude: no case is left"):
        cases(["*"])


def test_weights_are_read_by_number_and_by_name(root: Path) -> None:
    plan = read_plan([FIRST, SECOND], PLANS)
    assert weighted(plan, ["911=1", f"{SECOND}=2.5"]).weights == {FIRST: 1.0, SECOND: 2.5}
    assert weighted(plan, []).weights == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["911"], "-weights 911: expected DATASET=NUMBER"),
        (["911=much"], "-weights 911=much: expected DATASET=NUMBER"),
        (["911=1"], f"{SECOND} has none"),
        (["911=1", "912=-1"], f"{SECOND}=-1"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(root: Path, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        weighted(read_plan([FIRST, SECOND], PLANS), words)


def test_the_command_leaves_out_the_list_mixes_by_weight_and_tells_no_names(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "held_out.txt").write_text("911/SECRET_b\n")
    words = ["911", "912", "-e", "vit_tiny_8", "-device", "cpu", "-run", "mine", "-weights", "911=1", "912=3"]
    assert pretrain.main([*words, "-exclude", str(root / "held_out.txt"), "--set", *TINY, "steps=2"]) == 0
    assert f"25 % {FIRST}, 75 % {SECOND}" in capsys.readouterr().out
    folder = root / "results/pretrained/mine"
    assert json.loads((folder / "config.json").read_text())["plan"]["weights"] == {FIRST: 1.0, SECOND: 3.0}
    header = read_weights(folder / "encoder.safetensors").header
    assert header is not None and header.data is not None
    assert seen_cases(header.data, FIRST, ["SECRET_a", "SECRET_b", "SECRET_c"]) == ["SECRET_a", "SECRET_c"]
    assert all(b"SECRET" not in path.read_bytes() for path in folder.iterdir() if path.is_file())
    changed = [*words[:-2], "911=1", "912=1", "--c", "--set", *TINY, "steps=2"]
    assert pretrain.main([*changed, "-exclude", str(root / "held_out.txt")]) == 2
    assert "other settings" in capsys.readouterr().err
