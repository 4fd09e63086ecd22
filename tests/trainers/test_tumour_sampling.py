"""Crops with and without tumour come 1:1 from nnU-Net's own data set and loader, in this process and in workers."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnssl.trainers.tumour_sampling import TumourLoader

SHAPE = (40, 32, 24)
CROP = (16, 16, 16)
LABELS = LabelManager({"background": 0, "Tumour": 1}, None)
IGNORING = LabelManager({"background": 0, "Tumour": 1, "ignore": 2}, None)


def write_case(folder: Path, name: str, *tumours: tuple[int, int, int], radius: int = 2) -> None:
    labels = np.zeros((1, *SHAPE), dtype=np.int8)
    for centre in tumours:
        labels[(0, *(slice(at - radius, at + radius + 1) for at in centre))] = 1
    image = np.random.RandomState(0).rand(1, *SHAPE).astype(np.float32)
    everywhere = np.argwhere(labels >= 0)
    places = {1: np.argwhere(labels == 1), (-1, 0, 1): everywhere[::50]}
    nnUNetDatasetBlosc2.save_case(image, labels, {"class_locations": places}, str(folder / name))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> nnUNetDatasetBlosc2:
    """Three cases with small tumours, at the rim too, and two without."""
    folder = tmp_path_factory.mktemp("cases")
    for number, tumours in enumerate([[(10, 10, 10)], [(37, 29, 3), (3, 3, 20)], [(20, 16, 12)], [], []]):
        write_case(folder, f"case_{number}", *tumours)
    return nnUNetDatasetBlosc2(str(folder))


def held(batch: dict) -> list[bool]:
    return [bool((labels == 1).any()) for labels in batch["target"]]


@pytest.mark.parametrize(("size", "labels"), [(1, LABELS), (2, LABELS), (3, LABELS), (3, IGNORING)])
def test_every_other_crop_holds_tumour_and_the_others_hold_none(
    cases: nnUNetDatasetBlosc2, size: int, labels: LabelManager
) -> None:
    np.random.seed(0)
    loader = TumourLoader(cases, size, np.array(CROP), np.array(CROP), labels)
    found = [with_tumour for _ in range(12) for with_tumour in held(next(loader))]
    assert found == [index % 2 == 0 for index in range(12 * size)]


def test_what_counts_is_the_centre_that_the_network_gets(cases: nnUNetDatasetBlosc2) -> None:
    np.random.seed(0)
    loader = TumourLoader(cases, 4, np.array([24, 24, 24]), np.array(CROP), LABELS)
    inner = (slice(None), *[slice(4, 20)] * 3)
    batches = [next(loader)["target"] for _ in range(8)]
    assert [bool((labels[inner] == 1).any()) for batch in batches for labels in batch] == [True, False] * 16
    assert any((labels == 1).any() for batch in batches for labels in batch[1::2])  # in the rim it may be


def test_cases_without_tumour_are_seen_too(cases: nnUNetDatasetBlosc2) -> None:
    np.random.seed(0)
    loader = TumourLoader(cases, 2, np.array(CROP), np.array(CROP), LABELS)
    keys = [next(loader)["keys"] for _ in range(40)]
    assert {with_tumour for with_tumour, _ in keys} == {"case_0", "case_1", "case_2"}
    assert {without for _, without in keys} == {f"case_{number}" for number in range(5)}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # workers are ended at work
def test_workers_keep_the_ratio(cases: nnUNetDatasetBlosc2) -> None:
    loader = pickle.loads(pickle.dumps(TumourLoader(cases, 3, np.array(CROP), np.array(CROP), LABELS)))  # as spawn does
    augmenter = MultiThreadedAugmenter(loader, None, num_processes=2, seeds=[1, 2], num_cached_per_queue=1)
    try:
        found = [with_tumour for _ in range(8) for with_tumour in held(next(augmenter))]  # four batches of each worker
    finally:
        augmenter._finish()
    assert (len(found), sum(found)) == (24, 12)


def test_a_scan_full_of_tumour_gives_the_crop_with_the_least(tmp_path: Path) -> None:
    write_case(tmp_path, "full", (20, 16, 12), radius=12)
    np.random.seed(0)
    loader = TumourLoader(nnUNetDatasetBlosc2(str(tmp_path)), 2, np.array(CROP), np.array(CROP), LABELS)
    with pytest.warns(UserWarning, match="no crop without tumour"):
        inside, beside = next(loader)["target"]
    assert (beside == 1).sum() < (inside == 1).sum()


def test_data_without_any_tumour_is_refused(tmp_path: Path) -> None:
    write_case(tmp_path, "healthy")
    with pytest.raises(ValueError, match="no case of this split has a tumour"):
        TumourLoader(nnUNetDatasetBlosc2(str(tmp_path)), 2, np.array(CROP), np.array(CROP), LABELS)
