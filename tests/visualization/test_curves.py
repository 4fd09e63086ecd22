"""Training curves: what is drawn, and what a broken log does."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from nnssl.visualization.curves import draw_curves, read_log

PANELS = {"losses": ["loss"], "gradients": ["gradient/"]}


def dark_pixels(path: Path) -> int:
    picture = imread(path)[..., :3]
    return int((picture.min(axis=2) < 0.7).sum())


def test_a_picture_has_a_panel_per_title_and_more_ink_where_there_is_more_to_show(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1 / (step + 1), "gradient/encoder": 1.0} for step in range(30)]
    draw_curves(records, PANELS, tmp_path / "two.png")
    draw_curves(records, {"losses": ["loss"]}, tmp_path / "one.png")
    draw_curves(records, {str(number): ["loss"] for number in range(5)}, tmp_path / "five.png")
    draw_curves([], PANELS, tmp_path / "none.png")
    assert imread(tmp_path / "two.png").shape[1] == 2 * imread(tmp_path / "one.png").shape[1]
    assert imread(tmp_path / "five.png").shape[0] == 2 * imread(tmp_path / "one.png").shape[0]  # four in a row
    assert dark_pixels(tmp_path / "two.png") > dark_pixels(tmp_path / "none.png")


def test_a_long_log_is_thinned_out_and_drawn(tmp_path: Path) -> None:
    records = [{"step": step, "loss": float(np.sin(step / 500))} for step in range(9000)]
    draw_curves(records, PANELS, tmp_path / "long.png")
    assert dark_pixels(tmp_path / "long.png") > 500


def test_a_record_may_lack_a_number(tmp_path: Path) -> None:
    draw_curves([{"step": 0, "loss": 1.0}, {"step": 1, "gradient/head": 2.0}], PANELS, tmp_path / "gaps.png")
    assert (tmp_path / "gaps.png").is_file()


def test_limits_are_drawn_in_their_own_panel(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 1 / (step + 1)} for step in range(30)]
    draw_curves(records, PANELS, tmp_path / "plain.png")
    draw_curves(records, PANELS, tmp_path / "limits.png", limits={"losses": [0.2], "elsewhere": [1.0]})
    assert dark_pixels(tmp_path / "limits.png") > dark_pixels(tmp_path / "plain.png") + 50


def test_a_log_that_was_cut_off_is_read_up_to_the_cut(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.5}\n{"step": 2, "lo')
    assert read_log(tmp_path / "log.jsonl") == [{"step": 0, "loss": 2.0}, {"step": 1, "loss": 1.5}]
