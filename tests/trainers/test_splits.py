"""Folds keep patients together and equal nnU-Net's where nothing is to keep together."""

import itertools
import json
import logging
from pathlib import Path

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnssl.trainers.splits import cases_of_fold, labelled_subset, patients_of, splits_for

ACDC = [f"ACDC_{number:03d}_{phase}" for number in (1, 2, 3, 4, 21) for phase in ("ED", "ES")]


@pytest.mark.parametrize("count", [5, 7, 23])
def test_folds_of_single_case_patients_are_those_of_nnunet(tmp_path: Path, count: int) -> None:
    cases = [f"hippocampus_{number:03d}" for number in range(count)]
    expected = generate_crossval_split(cases, seed=12345, n_splits=5)
    splits = splits_for(tmp_path, cases[::-1])
    assert [sorted(split["val"]) for split in splits] == [sorted(map(str, split["val"])) for split in expected]
    assert [sorted(split["train"]) for split in splits] == [sorted(map(str, split["train"])) for split in expected]


def test_folds_are_saved_once_and_read_back(tmp_path: Path) -> None:
    first = splits_for(tmp_path, ACDC)
    assert json.loads((tmp_path / "splits_final.json").read_text()) == first
    first[0]["val"], first[0]["train"] = first[0]["train"], first[0]["val"]
    (tmp_path / "splits_final.json").write_text(json.dumps(first))
    assert splits_for(tmp_path, ACDC) == first


def test_both_phases_of_a_patient_share_a_fold(tmp_path: Path) -> None:
    splits = splits_for(tmp_path, ACDC)
    assert len(splits) == 5
    for split in splits:
        assert {case[:8] for case in split["train"]}.isdisjoint({case[:8] for case in split["val"]})
        assert sorted(split["train"] + split["val"]) == ACDC


def test_patients_of_dataset_json_win_over_names(tmp_path: Path) -> None:
    cases = ["a", "b", "c", "d"]
    (tmp_path / "dataset.json").write_text(json.dumps({"patients": {"a": "x", "b": "x", "c": "y", "d": "y"}}))
    assert sorted(split["val"] for split in splits_for(tmp_path, cases)) == [["a", "b"], ["c", "d"]]


def test_fewer_than_five_patients_give_fewer_folds_with_a_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(splits_for(tmp_path, ["a", "b", "c"])) == 3
    assert "3 folds instead of 5" in caplog.text


def test_one_patient_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train fold all instead"):
        splits_for(tmp_path, ["patient001_frame01", "patient001_frame12"])


def test_only_clear_names_name_a_patient() -> None:
    names = ["patient001_frame01", "sub-07_ses-1_T1w", "ACDC_001_ED", "KBP_001", "hippocampus_004", "LA_001"]
    expected = ["patient001", "sub-07", "ACDC_001", "KBP_001", "hippocampus_004", "LA_001"]
    assert list(patients_of(names, {}).values()) == expected


@pytest.mark.parametrize(
    ("train", "val", "words"), [(["a"], ["ghost"], "no validation case"), (["ghost"], ["a"], "no training case")]
)
def test_a_fold_without_a_preprocessed_case_is_refused(
    tmp_path: Path, train: list[str], val: list[str], words: str
) -> None:
    folds = [{"train": ["a"], "val": ["b"]}, {"train": train, "val": val}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match=f"fold 1 has {words} left; not preprocessed: 'ghost'"):
        splits_for(tmp_path, ["a", "b"])


def test_a_case_that_preprocessing_left_out_is_left_out_of_the_folds_with_its_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = [{"train": ["a", "ghost", "b"], "val": ["c"]}, {"train": ["c"], "val": ["b", "spirit", "a"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    with caplog.at_level(logging.WARNING):
        splits = splits_for(tmp_path, ["a", "b", "c"])
    assert splits == [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["b", "a"]}]
    assert "2 case(s) are not preprocessed and left out: ghost, spirit" in caplog.text
    assert json.loads((tmp_path / "splits_final.json").read_text()) == folds


@pytest.mark.parametrize("folds", [{}, [{"train": ["a"]}], [{"train": ["a"], "val": "b"}], [{"train": [1], "val": []}]])
def test_a_split_file_of_another_form_is_refused(tmp_path: Path, folds: object) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match="expected a list of"):
        splits_for(tmp_path, ["a", "b"])


def test_a_split_file_that_shares_a_patient_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ACDC[:1], "val": ACDC[1:2]}]))
    with caplog.at_level(logging.WARNING):
        splits_for(tmp_path, ACDC)
    assert "same patient (ACDC_001)" in caplog.text


def test_smaller_subsets_lie_within_larger_ones_and_order_of_input_is_irrelevant() -> None:
    cases = [f"case_{number:03d}" for number in range(20)]
    subsets = [set(labelled_subset(cases, number, seed=3)) for number in range(1, 21)]
    assert all(small < large for small, large in itertools.pairwise(subsets))
    assert labelled_subset(cases[::-1], 5, 3) == labelled_subset(cases, 5, 3)
    assert labelled_subset(cases, 5, 3) != labelled_subset(cases, 5, 4)


@pytest.mark.parametrize("number", [0, 4])
def test_a_subset_that_does_not_fit_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="3 training cases"):
        labelled_subset(["a", "b", "c"], number, 0)


def test_fold_all_trains_and_validates_on_everything_and_a_missing_fold_is_refused() -> None:
    splits = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
    assert cases_of_fold(splits, "all") == (["a", "b"], ["a", "b"])
    assert cases_of_fold(splits, 1) == (["a"], ["b"])
    with pytest.raises(ValueError, match="0 to 1"):
        cases_of_fold(splits, 2)
