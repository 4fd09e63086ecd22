"""DICOM files become volumes by what their headers say, wherever the files lie."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnssl.commands import import_scans
from nnssl.data.intake import open_dataset
from nnssl.data.intake.collection import Collection
from nnssl.data.intake.examine import Volume, examine, read_source
from nnssl.data.intake.folders import open_collection
from tests.data.raw_scans import use_folders
from tests.data.scan_files import SOP_CT, scan, write, write_dicom


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def volumes_of(collection: Collection) -> list[Volume]:
    found = [volume for source in collection.sources for volume in examine(source, {})]
    assert all(isinstance(volume, Volume) for volume in found), found
    return found  # type: ignore[return-value]


def test_a_series_gives_the_image_that_was_written_whatever_its_files_are_called(source: Path) -> None:
    image = scan(1)
    image.SetOrigin((-10.0, 20.0, -30.0))
    image.SetDirection((1, 0, 0, 0, 0, 1, 0, -1, 0))
    for number, file in enumerate(write_dicom(source / "x", image)):
        file.rename(file.with_name(f"IM{(number * 5) % 8}"))  # neither in order nor with an ending
    (found,) = open_collection(source).sources
    read = read_source(found)
    assert np.array_equal(SimpleITK.GetArrayFromImage(read), SimpleITK.GetArrayFromImage(image))
    for ours, theirs in ((read.GetSpacing(), image.GetSpacing()), (read.GetOrigin(), image.GetOrigin())):
        assert np.allclose(ours, theirs)
    assert np.allclose(read.GetDirection(), image.GetDirection())
    assert (found.modality, found.subject) == ("MR", "P1")


def test_slices_agree_with_gdcm_s_own_sorting(source: Path) -> None:
    write_dicom(source, scan(1))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(source)))
    (found,) = open_collection(source).sources
    assert np.array_equal(
        SimpleITK.GetArrayFromImage(read_source(found)), SimpleITK.GetArrayFromImage(reader.Execute())
    )


def test_series_are_told_apart_in_one_folder_and_joined_over_several(source: Path) -> None:
    write_dicom(source / "a", scan(1), series="1.2.1")
    files = write_dicom(source / "a", scan(2), series="1.2.2")
    (source / "b").mkdir()
    for file in files[:4]:
        shutil.move(file, source / "b" / file.name)
    assert [volume.shape for volume in volumes_of(open_collection(source))] == [(12, 10, 8)] * 2


def test_a_file_that_was_exported_twice_counts_once(source: Path) -> None:
    file = write_dicom(source, scan(1))[2]
    shutil.copy(file, source / "copy.dcm")
    assert len(volumes_of(open_collection(source))) == 1


def test_repeated_positions_are_times(source: Path) -> None:
    for time in range(3):
        write_dicom(source, scan(time), {"0020|0100": str(time + 1)}, start=100 * (2 - time))
    found = open_collection(source).sources
    assert len(found) == 3
    for time, one in enumerate(found):  # by temporal position, which runs against the instance numbers
        assert np.array_equal(SimpleITK.GetArrayFromImage(read_source(one)), SimpleITK.GetArrayFromImage(scan(time)))


def test_three_planes_in_one_series_are_three_stacks(source: Path) -> None:
    image = scan(1, (12, 12, 6))
    write_dicom(source, image)
    image.SetDirection((1, 0, 0, 0, 0, 1, 0, -1, 0))
    write_dicom(source, image, start=50)
    assert [volume.shape for volume in volumes_of(open_collection(source))] == [(12, 12, 6)] * 2


def test_a_multi_frame_file_is_a_volume(source: Path) -> None:
    image = scan(1, kind=np.uint16)
    for key, text in {"0008|0060": "CT", "0008|0016": SOP_CT, "0020|000e": "1.2.9"}.items():
        image.SetMetaData(key, text)
    SimpleITK.WriteImage(image, str(source / "enhanced.dcm"))
    (found,) = open_collection(source).sources
    assert np.array_equal(SimpleITK.GetArrayFromImage(read_source(found)), SimpleITK.GetArrayFromImage(scan(1)))


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}, "a localiser"),
        ({"0008|0008": "ORIGINAL\\PRIMARY\\M\\MOSAIC"}, "mosaic"),
        ({"0008|0060": "US"}, "ultrasound"),
        ({"0008|0060": "RTDOSE"}, "a dose map"),
        ({"0008|0060": "SEG"}, "a segmentation"),
    ],
)
def test_what_is_no_volume_is_left_out_with_its_kind(source: Path, tags: dict[str, str], reason: str) -> None:
    write_dicom(source, scan(1), tags)
    found = open_collection(source)
    assert found.sources == () and reason in found.left_out[0].reason and not found.left_out[0].damaged


def test_a_tilted_gantry_is_left_out(source: Path) -> None:
    image = scan(1)
    for index, file in enumerate(write_dicom(source, image)):
        part = SimpleITK.ReadImage(str(file))
        x, y, z = image.TransformIndexToPhysicalPoint((0, 0, index))
        part.SetMetaData("0020|0032", f"{x}\\{y + 0.5 * index}\\{z}")
        writer = SimpleITK.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        part = part[:, :, 0]
        for key, text in {
            "0020|0032": f"{x}\\{y + 0.5 * index}\\{z}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|000e": "1.2.3.4",
            "0008|0018": f"1.2.3.4.{index}", "0008|0060": "CT", "0008|0016": SOP_CT,
        }.items():  # fmt: skip
            part.SetMetaData(key, text)
        writer.SetFileName(str(file))
        writer.Execute(part)
    found = open_collection(source)
    assert found.sources == () and "tilted gantry" in found.left_out[0].reason


def test_a_single_slice_and_colours_are_no_volumes(source: Path) -> None:
    write_dicom(source / "one", scan(1)[:, :, :1])
    colours = SimpleITK.Compose([scan(n, (12, 10), np.uint8) for n in range(3)])
    colours.SetMetaData("0020|000e", "1.2.8")
    write(source / "picture.dcm", colours)
    assert sorted(line.reason for line in open_collection(source).left_out) == ["a single slice", "colour images"]


def test_voxels_scaled_by_fractions_are_not_cut_off(source: Path) -> None:
    quarters = SimpleITK.Cast(scan(1), SimpleITK.sitkFloat32) * 0.25
    stored = {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}  # signed 16 bits
    write_dicom(source, quarters, {"0028|1053": "0.25", "0028|1052": "0", "0008|0016": SOP_CT} | stored)
    (found,) = open_collection(source).sources
    read = SimpleITK.GetArrayFromImage(read_source(found))
    assert found.float_voxels and np.allclose(read, SimpleITK.GetArrayFromImage(quarters))


def test_scans_of_another_modality_are_left_out(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_folders(tmp_path, monkeypatch)
    write_dicom(source / "mr", scan(1), series="1.2.1")
    write_dicom(source / "ct", scan(2), {"0008|0060": "CT", "0008|0016": SOP_CT}, series="1.2.2")
    assert import_scans.main([str(source), "-d", "301", "-n", "Toy", "-np", "1", "--modality", "CT"]) == 0
    assert "modality MR, wanted is CT" in capsys.readouterr().out
    dataset = open_dataset(301)
    assert len(dataset.cases) == 1 and dataset.dataset_json["channel_names"] == {"0": "CT"}
    assert not SimpleITK.ReadImage(str(dataset.cases[0].images[0])).HasMetaDataKey("0010|0010")


def test_a_real_study_is_read(shared_data: Path) -> None:
    study = shared_data.parent / "dicom"
    if not study.is_dir():
        pytest.skip(f"real DICOM study is absent: {study}")
    found = {source.place: source for source in open_collection(study).sources}
    assert list(found) == ["Study1/13_HCropVolume (32 DICOM files)", "Study1/36459-FLAIRreg-76244 (22 DICOM files)"]
    small = examine(found["Study1/13_HCropVolume (32 DICOM files)"], {})[0]
    assert isinstance(small, Volume) and (small.shape, small.spacing_mm) == ((35, 51, 32), (1.0, 1.0, 1.0))
    assert found["Study1/36459-FLAIRreg-76244 (22 DICOM files)"].spacing_mm == pytest.approx(
        (0.4297, 0.4297, 6.5), abs=1e-3
    )
