"""What a folder of volume files, a BIDS tree, a raw folder and a pretrain_data.json become."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from nnssl.commands import import_scans
from nnssl.data.intake import RawDataset, open_dataset
from nnssl.data.intake.collection import Source, family
from nnssl.data.intake.examine import hash_voxels, part_of, parts_of
from nnssl.data.intake.folders import open_collection
from nnssl.data.intake.pretrain_data import read_pretrain_data, write_pretrain_data
from nnssl.dataset_conversion.raw_dataset import check_raw_dataset, write_dataset_json
from tests.data.raw_scans import use_folders, write_dataset
from tests.data.scan_files import minimal_dicom, scan, write


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_folders(tmp_path, monkeypatch)
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def imported(source: Path, *words: str, expect: int = 0) -> RawDataset:
    assert import_scans.main([str(source), "-d", "301", "-n", "Toy", "-np", "1", *words]) == expect
    dataset = open_dataset(301)
    assert check_raw_dataset(source.parent / "nnUNet_raw" / dataset.name, workers=1) == []
    return dataset


def test_a_mixed_folder_is_linked_and_only_what_lies_in_two_files_is_written(source: Path) -> None:
    for seed, name in enumerate(("a.nii", "b/b.nii.gz", "b/c.nrrd", "d.mha", "e.mhd", "f.nhdr")):
        write(source / name, scan(seed))
    dataset = imported(source)
    files = [case.images[0] for case in dataset.cases]
    endings = [".nii", ".nii.gz", ".nrrd", ".mha", ".nii.gz", ".nii.gz"]  # in the order of the places
    assert [file.name for file in files] == [f"Toy_000{n}_0000{ending}" for n, ending in enumerate(endings, 1)]
    assert [file.is_symlink() for file in files] == [True] * 4 + [False] * 2
    for seed, file in enumerate(files):
        assert np.array_equal(
            SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))), SimpleITK.GetArrayFromImage(scan(seed))
        )
    assert not Path(dataset.dataset_json["dataset"]["Toy_0001"]["images"][0]).is_absolute()


def test_a_folder_of_one_format_is_a_plain_data_set_for_any_nnunet(source: Path) -> None:
    for seed in range(3):
        write(source / f"{seed}.nrrd", scan(seed))
    dataset = imported(source)
    assert dataset.dataset_json == {
        "channel_names": {"0": "scan"}, "labels": {"background": 0}, "numTraining": 3, "file_ending": ".nrrd"
    }  # fmt: skip


def test_a_4d_file_becomes_one_case_per_time_and_the_cases_stay_together(source: Path) -> None:
    times = scan(3, (12, 10, 8, 3))
    write(source / "a.nii.gz", times)
    write(source / "b.nii.gz", scan(4))
    dataset = imported(source)
    assert [case.identifier for case in dataset.cases] == ["Toy_0001_1", "Toy_0001_2", "Toy_0001_3", "Toy_0002"]
    assert dataset.dataset_json["patients"]["Toy_0001_1"] == dataset.dataset_json["patients"]["Toy_0001_3"]
    whole = SimpleITK.GetArrayFromImage(times)
    for time, case in enumerate(dataset.cases[:3]):
        image = SimpleITK.ReadImage(str(case.images[0]))
        assert np.array_equal(SimpleITK.GetArrayFromImage(image), whole[time])
        assert image.GetSpacing() == (0.5, 0.75, 2.0)


def test_channels_of_one_file_become_cases(source: Path) -> None:
    parts = [scan(5, kind=np.float32), scan(6, kind=np.float32)]
    write(source / "a.nrrd", SimpleITK.Compose(parts))
    dataset = imported(source)
    for case, part in zip(dataset.cases, parts, strict=True):
        found = SimpleITK.ReadImage(str(case.images[0]))
        assert np.array_equal(SimpleITK.GetArrayFromImage(found), SimpleITK.GetArrayFromImage(part))


def test_parts_of_a_4d_image_with_channels_are_counted_channels_first() -> None:
    times = [SimpleITK.Compose([scan(10 * time + c, kind=np.float32) for c in range(2)]) for time in range(3)]
    image = SimpleITK.JoinSeries(times)
    assert parts_of(image) == 6
    for part in range(6):
        expected = SimpleITK.GetArrayFromImage(scan(10 * (part // 2) + part % 2, kind=np.float32))
        assert np.array_equal(SimpleITK.GetArrayFromImage(part_of(image, part)), expected)


OTHERS = {
    "a colour picture": lambda f: write(f / "x.mha", SimpleITK.Compose([scan(n, kind=np.uint8) for n in range(3)])),
    "a label map": lambda f: write(f / "x.nii.gz", SimpleITK.Cast(scan(3) > 500, SimpleITK.sitkUInt8)),
    "a 2D picture": lambda f: write(f / "x.nii.gz", scan(3, (12, 10))),
    "4 voxels along its shortest side": lambda f: write(f / "x.nii.gz", scan(3, (12, 10, 4))),
    "the same voxels as good.nii.gz": lambda f: write(f / "x.nrrd", SimpleITK.DICOMOrient(scan(1), "RAS")),
    "complex values": lambda f: write(
        f / "x.nii.gz", SimpleITK.RealAndImaginaryToComplex(scan(3, kind=np.float32), scan(4, kind=np.float32))
    ),
    "a vector field": lambda f: write(
        f / "x.nii.gz", SimpleITK.Compose([scan(n, kind=np.float32) for n in range(3)])
    ),
    "no images (1 .txt)": lambda f: (f / "x.txt").write_text("notes"),
    "a format that is not read": lambda f: (f / "x.mgz").touch(),
    "a radiotherapy object": lambda f: minimal_dicom(f / "x.dcm", "1.2.840.10008.5.1.4.1.1.481.3"),
    "a structured report": lambda f: minimal_dicom(f / "x", "1.2.840.10008.5.1.4.1.1.88.22"),
    "a DICOMDIR": lambda f: minimal_dicom(f / "DICOMDIR", "1.2.840.10008.1.3.10"),
    "not a regular file": lambda f: os.mkfifo(f / "x"),
}  # fmt: skip


@pytest.mark.parametrize("reason", OTHERS)
def test_what_is_sound_and_no_wanted_scan_is_listed_and_is_no_failure(
    source: Path, capsys: pytest.CaptureFixture[str], reason: str
) -> None:
    write(source / "good.nii.gz", scan(1))
    OTHERS[reason](source)
    assert len(imported(source).cases) == 1
    out = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("other")]
    assert len(out) == 1 and reason in out[0], out


def test_excluded_files_are_counted_by_pattern(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("good.nii.gz", "old/a.nii.gz", "old/b.nii.gz", "c_seg.nii.gz"):
        write(source / name, scan(1))
    assert len(imported(source, "--exclude", "old", "*_seg.nii.gz").cases) == 1
    out = capsys.readouterr().out
    assert "2 file(s)  --exclude old" in out and "1 file(s)  --exclude *_seg.nii.gz" in out


def test_a_ct_is_recognised_by_its_air(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        image = scan(seed)
        image[:6, :, :] = -1000
        write(source / f"{seed}.nii.gz", image)
    assert imported(source).dataset_json["channel_names"] == {"0": "CT"}
    assert "air in Hounsfield units" in capsys.readouterr().out


def test_a_bids_tree_gives_subject_session_and_modality(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source / "dataset_description.json").write_text("{}")
    (source / "participants.tsv").write_text("x")
    write(source / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz", scan(1))
    write(source / "sub-01/ses-b/anat/sub-01_ses-b_T1w.nii.gz", scan(2))
    write(source / "sub-02/func/sub-02_task-rest_bold.nii.gz", scan(3, (12, 10, 8, 2)))
    write(source / "sub-02/fmap/sub-02_phasediff.nii.gz", scan(4))
    write(source / "sub-02/anat/sub-02_desc-brain_mask.nii.gz", scan(5))
    write(source / "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", scan(6))
    found = open_collection(source)
    facts = [(one.subject, one.session, one.modality) for one in found.sources]
    assert facts == [("sub-01", "ses-a", "T1w"), ("sub-01", "ses-b", "T1w"), ("sub-02", "", "bold")]
    dataset = imported(source)
    assert dataset.dataset_json["channel_names"] == {"0": "MRI"}
    assert [case.identifier for case in dataset.cases] == ["Toy_0001_1", "Toy_0001_2", "Toy_0002_1", "Toy_0002_2"]
    out = capsys.readouterr().out
    assert "a field map" in out and "a mask" in out and "1 file(s) beside the raw data" in out


def test_a_labelled_raw_folder_keeps_channels_labels_and_patients(source: Path) -> None:
    raw = source.parent / "nnUNet_raw"
    folder = write_dataset(raw, "Dataset100_Labelled", cases=3)
    for case in range(3):
        second = SimpleITK.ReadImage(str(folder / f"imagesTr/case_{case}_0000.nii.gz")) + 1
        SimpleITK.WriteImage(second, str(folder / f"imagesTr/case_{case}_0001.nii.gz"))
    labels = {"background": 0, "all": [1], "core": [1]}
    patients = {"patients": {"case_0": "Jane", "case_1": "Jane", "case_2": "Joe"}, "regions_class_order": [1, 1]}
    write_dataset_json(folder, {"0": "FLAIR", "1": "T1"}, labels, 3, extra=patients)
    assert import_scans.main([str(folder), "-d", "301", "-n", "Toy", "-np", "1"]) == 0
    dataset = open_dataset(301)
    assert dataset.labelled and dataset.channels == 2
    assert [case.identifier for case in dataset.cases] == ["Toy_0001_1", "Toy_0001_2", "Toy_0002"]
    assert dataset.dataset_json["labels"] == labels and dataset.dataset_json["regions_class_order"] == [1, 1]
    assert check_raw_dataset(raw / dataset.name, workers=1) == []
    assert "Jane" not in (raw / dataset.name / "dataset.json").read_text()


def test_an_unlabelled_raw_folder_gives_a_case_per_channel(source: Path) -> None:
    for channel in range(2):
        write(source / f"imagesTr/case_000{channel}.nii.gz", scan(channel))
    write_dataset_json(source, {"0": "T1", "1": "T2"}, {"background": 0}, 1)
    assert [case.identifier for case in imported(source).cases] == ["Toy_0001_1", "Toy_0001_2"]


def test_images_without_a_dataset_json_are_taken_and_their_labels_are_not(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source / "imagesTr/case_0000.nii.gz", scan(1))
    write(source / "labelsTr/case.nii.gz", scan(2))
    assert len(imported(source).cases) == 1
    assert "label maps without a dataset.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "labelsTr/case_1.nii.gz").unlink(), "no such file"),
        (lambda folder: (folder / "labelsTr/case_1.nii.gz").write_bytes(b""), "empty file"),
        (lambda folder: write(folder / "labelsTr/case_1.nii.gz", scan(1, kind=np.uint8)), "differs from shape"),
        (lambda folder: (folder / "imagesTr/case_1_0000.nii.gz").write_bytes(b"x" * 500), "not a NIfTI"),
    ],
    ids=["no label", "empty label", "label of another shape", "damaged image"],
)
def test_a_damaged_labelled_case_is_left_out(
    source: Path, capsys: pytest.CaptureFixture[str], damage: object, reason: str
) -> None:
    folder = write_dataset(source.parent / "nnUNet_raw", "Dataset100_Labelled", cases=3)
    damage(folder)  # type: ignore[operator]
    assert import_scans.main([str(folder), "-d", "301", "-n", "Toy", "-np", "1"]) == 1
    out = capsys.readouterr().out
    assert any("damaged  case_1" in line and reason in line for line in out.splitlines()), out
    assert len(open_dataset(301).cases) == 2


def test_pretrain_data_keeps_masks_in_their_place_and_paths_relative_to_variables(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MYDATA", str(source))
    for name in ("a.nii.gz", "anon.nii.gz", "anat.nii.gz"):
        write(source / name, scan(len(name)))
    image = {
        "name": "sub-01_T1w.nii.gz", "image_path": "$MYDATA/a.nii.gz", "modality": "T1w", "image_info": {},
        "associated_masks": {"anonymization_mask": "$MYDATA/anon.nii.gz", "anatomy_mask": "$MYDATA/anat.nii.gz"},
    }  # fmt: skip
    session = {"session_id": "ses-1", "session_info": None, "images": [image]}
    subject = {"subject_id": "sub-01", "subject_info": {"age": 70}, "sessions": {"ses-1": session}}
    dataset = {"dataset_index": "ds1", "name": None, "dataset_info": None, "subjects": {"sub-01": subject}}
    listed = {"collection_index": 1, "collection_name": "Dataset001_X", "datasets": {"ds1": dataset}}
    (source / "pretrain_data.json").write_text(json.dumps(listed))
    (found,) = read_pretrain_data(source / "pretrain_data.json").sources
    assert (found.subject, found.session, found.modality) == ("ds1/sub-01", "ses-1", "T1w")
    assert found.masks == {"anonymization": source / "anon.nii.gz", "anatomy": source / "anat.nii.gz"}
    imported(source, "--pretrain_data", str(source / "out.json"))
    written = json.loads((source / "out.json").read_text())
    assert set(written) == {"collection_index", "collection_name", "datasets"}
    (entry,) = written["datasets"]["301"]["subjects"]["Toy_0001"]["sessions"]["ses-1"]["images"]
    base = "$nnUNet_raw/Dataset301_Toy"
    assert entry == {
        "name": "Toy_0001_0000.nii.gz", "image_path": f"{base}/imagesTr/Toy_0001_0000.nii.gz", "modality": "T1w",
        "image_info": {}, "associated_masks": {
            "anonymization_mask": f"{base}/masks_anonymization/Toy_0001.nii.gz",
            "anatomy_mask": f"{base}/masks_anatomy/Toy_0001.nii.gz",
        },
    }  # fmt: skip
    again = read_pretrain_data(source / "out.json").sources[0]
    assert again.masks["anatomy"].readlink() == source / "anat.nii.gz"
    assert again.masks["anonymization"].readlink() == source / "anon.nii.gz"


def test_a_variable_that_is_not_set_is_named(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {"subjects": {"s": {"sessions": {"t": {"images": [{"image_path": "$NO_SUCH/a.nii.gz"}]}}}}}
    (source / "pretrain_data.json").write_text(json.dumps({"datasets": {"1": images}}))
    assert import_scans.main([str(source), "-d", "301", "-n", "Toy"]) == 2
    assert "$NO_SUCH/a.nii.gz: this environment variable is not set" in capsys.readouterr().err


def test_a_folder_whose_name_only_begins_alike_is_not_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    source = Source(((tmp_path / "raw2" / "a.nii.gz",),), "a", "s")
    write_pretrain_data([source], tmp_path / "out.json", number=1, name="X")
    assert read_pretrain_data(tmp_path / "out.json").sources[0].images[0][0] == tmp_path / "raw2" / "a.nii.gz"
    assert "$nnUNet_raw" not in (tmp_path / "out.json").read_text()


def test_equal_voxels_have_equal_hashes_whatever_type_and_axes() -> None:
    image = scan(1)
    assert hash_voxels(image) == hash_voxels(SimpleITK.DICOMOrient(SimpleITK.Cast(image, SimpleITK.sitkFloat32), "AIR"))
    assert hash_voxels(image) != hash_voxels(scan(2))


@pytest.mark.parametrize(("word", "name"), [("T1w", "MRI"), ("MR", "MRI"), ("ct", "CT"), ("PT", "PET"), ("OCT", "OCT")])
def test_modalities_have_families(word: str, name: str) -> None:
    assert family(word) == name
