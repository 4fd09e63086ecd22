"""Lists of held-out cases: how lines are read and what they leave out."""

from pathlib import Path

import pytest

from nnssl.data.exclusion import held_out_cases, read_exclusions

STORED = {"Dataset004_Hippocampus": ["h_001", "h_002", "s_1"], "Dataset202_UnlabelledMR": ["s_1", "s_2", "s_10"]}


def test_comments_and_empty_lines_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("# held out\n4/h_001  # twice\n\n   s_2\n")
    (tmp_path / "two.txt").write_text("s_10\r\n")
    assert read_exclusions([tmp_path / "one.txt", tmp_path / "two.txt"]) == ["4/h_001", "s_2", "s_10"]
    with pytest.raises(FileNotFoundError, match=r"none\.txt: no such file"):
        read_exclusions([tmp_path / "none.txt"])


@pytest.mark.parametrize(
    ("line", "hippocampus", "other"),
    [
        ("s_1", {"s_1"}, {"s_1"}),
        ("202/s_1", set(), {"s_1"}),
        ("004/h_001", {"h_001"}, set()),
        ("Dataset202_UnlabelledMR/s_*", set(), {"s_1", "s_2", "s_10"}),
        ("4/h_00[12]", {"h_001", "h_002"}, set()),
        ("77/anything", set(), set()),
    ],
)
def test_a_line_leaves_out_what_it_names(line: str, hippocampus: set[str], other: set[str]) -> None:
    assert list(held_out_cases([line], STORED).values()) == [hippocampus, other]


@pytest.mark.parametrize("line", ["h_003", "4/s_2", "H_001", "202/"])
def test_a_line_that_names_no_case_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"-exclude: 1 line\(s\) name no stored case of Dataset004"):
        held_out_cases(["s_1", line], STORED)
