"""plan.html: all decisions in words, pictures that are there, no request to anyone, no case or path named."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnssl.data.fingerprint import fingerprint
from nnssl.data.intake import open_dataset
from nnssl.encoders import encoder_spec
from nnssl.planners.encoder_planner import EncoderPlanner, Wishes, plan_together
from nnssl.planners.explain import Decision
from nnssl.planners.glossary import meaning
from nnssl.planners.plan_figures import CROP_COLOUR, GLOBAL_COLOUR, LOCAL_COLOUR, crop_boxes
from nnssl.planners.plan_page import plan_page, write_plan_page
from nnssl.visualization.plan_pictures import Mark, slices_with_boxes
from tests.data.raw_scans import use_folders, write_dataset
from tests.planners.browser import find_browser, open_page


@pytest.fixture
def planner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncoderPlanner:
    """Four scans of a blob, planned for a ViT."""
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    return planned("vit_tiny_8")


def planned(encoder: str, wishes: Wishes | None = None) -> EncoderPlanner:
    fingerprint(open_dataset(901), processes=1)
    made = EncoderPlanner(901, spec=encoder_spec(encoder), wishes=wishes)
    made.plan_experiment()
    return made


def test_every_decision_is_on_the_page_with_its_reason(planner: EncoderPlanner) -> None:
    page = plan_page(planner, [Decision("pretrain", "pretraining", "3.0 h", "as measured <here>")])
    for row in planner.decisions:
        assert f'<td class="value">{row.value}</td><td>{row.why.replace(chr(39), "&#x27;")}</td>' in page, row.what
    assert "as measured &lt;here&gt;" in page


@pytest.mark.parametrize(("encoder", "recipe"), [("vit_tiny_8", "3dino"), ("swin_tiny", None), ("smit_96", "smit_few")])
def test_every_line_of_a_plan_is_explained_in_plain_words(
    encoder: str, recipe: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob")
    made = planned(encoder, Wishes(recipe))
    assert [row.what for row in made.decisions if not meaning(row.what)] == []


def test_the_page_stands_beside_the_plans_and_names_no_case_and_no_path(
    planner: EncoderPlanner, tmp_path: Path
) -> None:
    path = write_plan_page(planner)
    assert path == tmp_path / "nnUNet_preprocessed" / "Dataset901_Blob" / "nnsslPlans_vit_tiny_8.html"
    page = path.read_text()
    words = re.sub(r'src="data:[^"]*"', "", page)
    assert "case_" not in words
    assert str(tmp_path) not in words
    assert "://" not in words
    assert words.count("<img ") == page.count('src="data:image/png;base64,') == 6  # three histograms, three scans


def test_a_scan_that_is_gone_costs_only_its_picture(planner: EncoderPlanner, tmp_path: Path) -> None:
    for file in (tmp_path / "nnUNet_raw").rglob("case_*_0000.nii.gz"):
        file.unlink()
    assert plan_page(planner).count("<img ") == 3


def test_resized_views_are_drawn_as_shares_of_the_scan(planner: EncoderPlanner) -> None:
    finetune, pretrain = planner.plan_finetune(), plan_together([planner]).geometry
    crop, large, small = crop_boxes((100.0, 200.0, 60.0), finetune, pretrain)
    geometry = finetune.geometry
    assert crop.values == pytest.approx(np.multiply(geometry.crop, geometry.spacing_mm))
    assert large.values == pytest.approx((100 * 0.74**0.5, 200 * 0.74**0.5, 60 * 0.75))  # middle of 0.48-1, 0.5-1
    assert small.values == pytest.approx((100 * 0.32**0.5, 200 * 0.32**0.5, 60 * 0.35))  # of 0.16-0.48, 0.2-0.5


def test_a_box_of_half_the_scan_is_drawn_half_as_large() -> None:
    picture = pixels(np.ones((40, 40, 40), dtype=np.float32), Mark("half", (20.0, 20.0, 20.0), "#ff0000"))
    whole = pixels(np.ones((40, 40, 40), dtype=np.float32), Mark("whole", (40.0, 40.0, 40.0), "#ff0000"))
    sides = [np.ptp(np.flatnonzero(red(each).any(axis=1))) for each in (picture, whole)]
    assert sides[0] / sides[1] == pytest.approx(0.5, abs=0.02)


def test_patient_right_and_anterior_are_at_the_left_and_head_and_anterior_at_the_top() -> None:
    for axis, side in ((0, "left"), (2, "top")):
        scan = np.zeros((40, 40, 40), dtype=np.float32)
        np.moveaxis(scan, axis, 0)[20:] = 1.0  # right of the patient; towards the head
        picture = pixels(scan, Mark("none", (1.0, 1.0, 1.0), "#ff0000"))
        coronal = picture[60:-40, picture.shape[1] * 3 // 8 : picture.shape[1] * 5 // 8].mean(axis=-1)
        halves = np.array_split(coronal, 2, axis=1 if side == "left" else 0)
        assert halves[0].mean() > 3 * halves[1].mean()


def pixels(scan: np.ndarray, box: Mark) -> np.ndarray:
    return imread(io.BytesIO(slices_with_boxes(scan, (1.0, 1.0, 1.0), [box])))[..., :3]


def red(picture: np.ndarray) -> np.ndarray:
    axial = picture[:, : picture.shape[1] // 3]
    return (axial[..., 0] > 0.8) & (axial[..., 1:] < 0.3).all(axis=-1)


@pytest.mark.slow
def test_a_browser_shows_all_pictures_and_asks_for_nothing_else(planner: EncoderPlanner, tmp_path: Path) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium here (apt-get install chromium, or set NNSSL_BROWSER)")
    page = write_plan_page(planner)
    seen = open_page(browser, page, tmp_path / "profile")
    assert seen.requests[0] == page.as_uri()
    assert all(address.startswith("data:image/png;base64,") for address in seen.requests[1:])
    assert seen.blocked == []
    assert len(seen.pictures) == 6
    assert all(complete and width > 500 and height > 100 for complete, width, height, _ in seen.pictures)
    assert all(words for *_, words in seen.pictures)


@pytest.mark.slow
def test_the_browser_would_notice_a_request_to_another_machine(planner: EncoderPlanner, tmp_path: Path) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium here (apt-get install chromium, or set NNSSL_BROWSER)")
    page, address = tmp_path / "asks.html", "http://pictures.invalid/x.png"
    page.write_text(plan_page(planner).replace("<body>", f'<body><img src="{address}">'))
    seen = open_page(browser, page, tmp_path / "profile")
    assert address in seen.requests
    assert any("Content Security Policy" in text for text in seen.blocked)  # the page forbids it
    assert seen.pictures[0][1] == 0


def test_boxes_have_colours_that_the_legend_names(planner: EncoderPlanner) -> None:
    page = plan_page(planner)
    assert all(colour in page for colour in (CROP_COLOUR, GLOBAL_COLOUR, LOCAL_COLOUR))
