"""Tables of runs: numbers agree with the scores, undefined scores are handled as stated."""

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.evaluation.metrics import LabelScore
from nnssl.evaluation.pictures import caption, telling_cases
from nnssl.evaluation.report import csv_rows, markdown, summarise, write_report
from nnssl.evaluation.runs import RunScores, distinct_names

NAN, INF = float("nan"), float("inf")


def run(name: str, *rows: tuple[float, float]) -> RunScores:
    """Two labels; HD95 is 10 (1 - Dice), inf at Dice 0 and undefined where Dice is."""
    scores = {
        f"case_{i}": {
            label: LabelScore(value, INF if value == 0 else 10 * (1 - value), 1.0, 2.0)
            for label, value in zip(("organ", "tumour"), row, strict=True)
        }
        for i, row in enumerate(rows)
    }
    return RunScores(name, ("organ", "tumour"), scores, (), ())


FIRST = run("first", (0.9, 0.5), (0.8, NAN), (0.7, 0.0))
SECOND = run("second", (0.8, 0.6), (0.7, NAN), (0.6, 0.2))


def test_means_leave_out_undefined_dice_and_count_missing_surfaces() -> None:
    found = summarise([FIRST])["runs"][0]
    assert found["labels"]["organ"]["dice"]["mean"] == pytest.approx(0.8)
    assert found["labels"]["tumour"]["dice"]["mean"] == pytest.approx(0.25)
    assert found["labels"]["tumour"]["dice"]["cases"] == 2
    assert found["labels"]["tumour"]["hd95_mm"] == {"mean": 5.0, "median": None, "cases": 1, "missing": 1}
    assert found["foreground_mean"]["dice"]["mean"] == pytest.approx((0.8 + 0.25) / 2)  # nnU-Net's foreground_mean


def test_comparison_is_second_minus_first() -> None:
    found = summarise([FIRST, SECOND])["comparison"]["labels"]
    assert found["organ"]["difference"]["mean"] == pytest.approx(-0.1)
    assert found["tumour"]["difference"]["mean"] == pytest.approx(0.15)
    assert found["tumour"]["difference"]["cases"] == 2


def test_markdown_has_a_row_per_label_and_columns_for_the_second_run() -> None:
    lines = markdown([FIRST, SECOND]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["organ", "tumour", "foreground mean"]
    assert "0.800 [" in lines[2]
    assert "-0.100 [-0.100, -0.100]" in lines[2]
    assert "(1 missing)" in lines[3]
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_csv_has_a_row_per_run_case_and_label() -> None:
    rows = csv_rows([FIRST, SECOND])
    assert len(rows) == 1 + 2 * 3 * 2
    assert rows[4] == ["first", "case_1", "tumour", "", "", "1", "2"]
    assert rows[6] == ["first", "case_2", "tumour", "0", "inf", "1", "2"]


def test_written_json_is_strict_and_holds_every_score(tmp_path: Path) -> None:
    paths = write_report([FIRST], tmp_path)
    assert [path.name for path in paths] == ["evaluation.json", "evaluation.csv", "evaluation.md"]
    values = json.loads(paths[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert values["runs"][0]["cases"]["case_0"]["organ"]["dice"] == 0.9
    assert values["runs"][0]["cases"]["case_1"]["tumour"]["dice"] is None


def test_best_median_and_worst_case_are_different_cases() -> None:
    assert telling_cases({"a": 0.5, "b": 0.9, "c": 0.7, "d": 0.6}) == {"best": "b", "median": "c", "worst": "a"}
    assert telling_cases({"a": 0.5, "b": 0.9}) == {"best": "b", "worst": "a"}
    assert telling_cases({"a": 0.5}) == {"best": "a"}
    assert telling_cases({}) == {}


def test_caption_gives_the_dice_of_each_label() -> None:
    assert caption(FIRST, "case_1") == "Dice 0.800: organ 0.80, tumour -"


def test_run_names_are_as_short_as_distinct() -> None:
    assert distinct_names([Path("/x/a/fold_0"), Path("/x/b/fold_0")]) == ["a/fold_0", "b/fold_0"]
    assert distinct_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    with pytest.raises(ValueError, match="given twice"):
        distinct_names([Path("/x/a"), Path("/x/a")])


def test_case_means_skip_cases_without_any_score() -> None:
    assert run("r", (NAN, NAN), (0.5, 1.0)).case_means() == {"case_1": 0.75}
    assert np.isnan(run("r", (NAN, NAN)).table("dice")).all()
