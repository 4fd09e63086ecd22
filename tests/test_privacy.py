"""Identities planted in names, paths, headers and DICOM tags reach nothing that leaves the machine."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import gaussian_filter

from nnssl.commands import import_scans, plan_and_preprocess, pretrain
from nnssl.dataset_conversion.raw_dataset import write_dataset_json
from tests.data.raw_scans import make_image, use_folders
from tests.data.scan_files import write, write_dicom

NAME, DATE, PLACE = "QUIMBYJANE", "19620415", "SANATORIUMZZ"
NOTES = {"descrip": f"{NAME} {DATE}", "ITK_FileNotes": f"{NAME} {DATE}", "aux_file": PLACE, "intent_name": NAME}
TAGS = {
    "0010|0010": f"{NAME}^J",
    "0010|0020": f"ID{DATE}",
    "0010|0030": DATE,
    "0008|0080": PLACE,
    "0008|0020": DATE,
    "0008|103e": f"T1 of {NAME}",
}
PLANS = "nnsslPlans_vit_tiny_8"
TINY = ["steps=2", "save_every=1", "batch_size=2", "prototypes=32", "hidden=16", "bottleneck=8", "local_views=2"]


def smooth(seed: int) -> SimpleITK.Image:
    values = gaussian_filter(np.random.default_rng(seed).normal(size=(20, 26, 22)), 1.5)
    return make_image(((values - values.min()) * 1000 + 5).astype(np.int16))


def plant(root: Path) -> tuple[Path, Path]:
    """A mixed folder and a labelled raw folder full of identities."""
    mixed = root / f"{NAME}_{DATE}" / PLACE
    write_dicom(mixed / f"{NAME}_dicom", smooth(1), TAGS)
    write(mixed / f"{NAME}.nii.gz", smooth(2), NOTES)
    write(mixed / f"{DATE}.nrrd", smooth(3), {"patient": NAME})
    times = SimpleITK.JoinSeries([smooth(4), smooth(5)])
    write(mixed / f"{NAME}_4d.nii.gz", times, NOTES)
    (mixed / f"{NAME}_damaged.nii.gz").write_bytes(NAME.encode() * 9)
    labelled = root / f"{PLACE}_labelled"
    for seed in range(6, 9):
        image = smooth(seed)
        label = SimpleITK.Cast(
            image > float(np.percentile(SimpleITK.GetArrayFromImage(image), 80)), SimpleITK.sitkUInt8
        )
        write(labelled / "imagesTr" / f"{NAME}{seed}_0000.nii.gz", image, NOTES)
        write(labelled / "labelsTr" / f"{NAME}{seed}.nii.gz", label, NOTES)
    patients = {"patients": {f"{NAME}{seed}": NAME for seed in range(6, 9)}}
    write_dataset_json(labelled, {"0": "MRI"}, {"background": 0, "blob": 1}, 3, extra=patients)
    return mixed, labelled


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every name, and every byte of every file, archives and compressed label maps unpacked."""
    for path in sorted(folder.rglob("*")):
        yield str(path), path.relative_to(folder).as_posix().encode()
        if not path.is_file():
            continue
        yield str(path), path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield f"{path}:{name}", name.encode() + archive.read(name)
        if path.name.endswith(".nii.gz"):
            image = SimpleITK.ReadImage(str(path))
            yield str(path), " ".join(image.GetMetaData(key) for key in image.GetMetaDataKeys()).encode()


@pytest.mark.slow
def test_planted_identities_reach_no_plan_volume_checkpoint_or_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nn").mkdir()
    use_folders(tmp_path / "nn", monkeypatch)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    mixed, labelled = plant(tmp_path)
    assert import_scans.main([str(mixed), "-d", "901", "-n", "Mixed", "-np", "1"]) == 1  # one is damaged
    assert import_scans.main([str(labelled), "-d", "902", "-n", "Labelled", "-np", "1"]) == 0
    assert plan_and_preprocess.main(["-d", "901", "902", "-e", "vit_tiny_8", "-np", "1"]) == 0
    words = ["901", "902", "-e", "vit_tiny_8", "-device", "cpu", "-run", "one", "--set", *TINY]
    assert pretrain.main(words) == 0
    secrets = [word.encode() for word in (NAME, DATE, PLACE, str(mixed), str(labelled))]
    checked = 0
    for folder in (tmp_path / "nn/nnUNet_preprocessed", tmp_path / "nn/nnUNet_results"):
        for where, content in contents(folder):
            assert [word for word in secrets if word in content] == [], where
            checked += 1
    assert checked > 50
    assert any((tmp_path / "nn/nnUNet_results/pretrained/one").glob("*.safetensors"))
    description = (tmp_path / "nn/nnUNet_raw/Dataset901_Mixed/dataset.json").read_text()
    written = tmp_path / "nn/nnUNet_raw/Dataset901_Mixed/imagesTr"
    assert NAME not in description and NAME not in " ".join(path.name for path in written.iterdir())
    for where, content in contents_of_written(written):
        assert NAME.encode() not in content and DATE.encode() not in content, where


def contents_of_written(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What the import wrote itself (links lead to the sources)."""
    for path in folder.iterdir():
        if not path.is_symlink():
            image = SimpleITK.ReadImage(str(path))
            yield str(path), " ".join(image.GetMetaData(key) for key in image.GetMetaDataKeys()).encode()
