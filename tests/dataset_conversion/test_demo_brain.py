"""The embedded demo data: three tissues, held-out warps, a raw folder without problems."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnssl.dataset_conversion import demo_brain
from nnssl.dataset_conversion.raw_dataset import check_raw_dataset, list_cases, load_dataset_json
from nnssl.paths import load_json

pytest.importorskip("nilearn", reason="the demo data comes with nilearn (pip install 'nnssl[demo]')")
SIZES = demo_brain.DemoSizes(train=2, validation=1, unlabelled=2, spacing_mm=8.0)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    demo_brain.write_demo(folder, SIZES)
    return folder


def test_both_raw_folders_pass_the_checker(raw: Path) -> None:
    assert check_raw_dataset(raw / demo_brain.LABELLED, workers=1) == []
    assert check_raw_dataset(raw / demo_brain.UNLABELLED, workers=1) == []


def test_validation_warps_are_in_no_training_list(raw: Path) -> None:
    split = load_json(raw / demo_brain.LABELLED / "splits_final.json")[0]
    unlabelled = raw / demo_brain.UNLABELLED
    seen = {case.identifier for case in list_cases(unlabelled, load_dataset_json(unlabelled))} | set(split["train"])
    assert split["val"] and not seen & set(split["val"])
    scans = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) for path in raw.glob("*/imagesTr/*.nii.gz")]
    assert len({scan.tobytes() for scan in scans}) == len(scans) == 5  # no warp is used twice


def test_a_warp_is_decided_by_its_seed() -> None:
    template = demo_brain.load_template(8.0)
    first, second, other = (demo_brain.warped_brain(template, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], other[1])


def test_white_matter_is_brighter_than_grey_in_the_template() -> None:
    template = demo_brain.load_template(4.0)
    grey, white = template.grey > 0.7, template.white > 0.7
    assert template.intensity[white].mean() > 1.2 * template.intensity[grey].mean()
