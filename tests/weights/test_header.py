"""Headers keep facts, test membership of cases, and hold neither names of subjects nor paths."""

import json
from typing import Any

import pytest

from nnssl.encoders.base import IntensityRange
from nnssl.weights.header import (
    DataRecord,
    EncoderHeader,
    case_hash,
    header_from_text,
    header_to_text,
    record_cases,
    seen_cases,
)

CASES = [("Dataset004_Hippocampus", f"hippocampus_{i:03d}") for i in range(5)]


def _header(**settings: Any) -> EncoderHeader:
    return EncoderHeader("vit_small_16", (96, 96, 64), IntensityRange("window", -175, 250, (0.0, 1.0)), **settings)


def test_a_header_survives_being_written_and_read() -> None:
    header = _header(
        spacing_mm=(1.0, 1.0, 2.5),
        task="threedino",
        steps=200,
        plan={"lr": 1e-3, "crop": [96, 96, 64]},
        data=record_cases(CASES),
    )
    assert header_from_text(header_to_text(header)) == header


def test_cases_seen_in_pretraining_are_found_and_others_are_not() -> None:
    record = record_cases(CASES)
    asked = ["hippocampus_003", "hippocampus_099", "hippocampus_000"]
    assert seen_cases(record, "Dataset004_Hippocampus", asked) == ["hippocampus_003", "hippocampus_000"]
    assert seen_cases(record, "Dataset005_Prostate", asked) == []


def test_two_records_of_the_same_cases_share_no_hash() -> None:
    first, second = record_cases(CASES), record_cases(CASES)
    assert not set(first.case_hashes) & set(second.case_hashes)
    assert first.data_hash != second.data_hash and first.salt != second.salt


def test_the_data_hash_does_not_depend_on_the_order_of_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: "salt")
    assert record_cases(CASES) == record_cases(CASES[::-1] + CASES[:2])
    assert record_cases(CASES).data_hash != record_cases(CASES[:4]).data_hash


def test_a_case_hash_is_the_salted_sha256_of_data_set_and_case() -> None:
    # printf 'salt\nDataset004_Hippocampus/hippocampus_001' | sha256sum
    assert case_hash("salt", "Dataset004_Hippocampus", "hippocampus_001") == "378f02dc4ccefef33a85ca7b7b2a8f35"


def test_a_header_holds_no_case_name() -> None:
    text = header_to_text(_header(data=record_cases(CASES)))
    assert "hippocampus_0" not in text and "Dataset004" not in text
    assert json.loads(text)["data"]["cases"] == 5


@pytest.mark.parametrize(
    "plan",
    [
        {"folder": "/home/me/data"},
        {"nested": [{"file": "C:\\data\\a.nii.gz"}]},
        {"/srv/raw/x": 1},
        {"command": "nnssl_pretrain -o /mnt/disk/out"},
        {"folder": "~/data"},
    ],
)
def test_an_absolute_path_in_the_plan_is_refused(plan: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        header_to_text(_header(plan=plan))


def test_ordinary_text_with_slashes_passes() -> None:
    plan = {
        "why": "24 / 16 voxels, in/out 1/2",
        "range": "window:-175,250",
        "source": "https://arxiv.org/abs/2002.05709",
    }
    assert header_from_text(header_to_text(_header(plan=plan))).plan == plan


def test_settings_of_a_newer_version_are_left_out() -> None:
    values = json.loads(header_to_text(_header()))
    assert header_from_text(json.dumps({**values, "licence": "new"})) == _header()


@pytest.mark.parametrize("text", ["", "[]", "{}", "{'a'}", '{"encoder": 3}'])
def test_a_damaged_header_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the header is damaged"):
        header_from_text(text)


def test_a_record_whose_count_is_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="counts 2 cases but holds 1"):
        DataRecord("salt", ("a",), 2, "b")
