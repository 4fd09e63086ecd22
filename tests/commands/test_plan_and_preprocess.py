"""The command: exit codes, the table, whose intensity counts, and a few real scans."""

import shutil
from pathlib import Path

import blosc2
import pytest
import SimpleITK
import torch

from nnssl.commands.plan_and_preprocess import choose_encoder, command, main, read_intensity
from nnssl.data.stamp import check_stamp
from nnssl.encoders import build_encoder
from nnssl.encoders.base import IntensityRange
from nnssl.geometry import centres_inside
from nnssl.paths import load_json, save_json
from nnssl.trainers.finetune_encoder import load_for_plans
from nnssl.weights.encoder_file import save_encoder
from nnssl.weights.header import EncoderHeader
from tests.data.raw_scans import use_folders, write_dataset


def test_both_kinds_of_data_set_go_through_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = use_folders(tmp_path, monkeypatch)
    write_dataset(raw, "Dataset901_Blob", cases=3)
    write_dataset(raw, "Dataset902_Bare", cases=2, labelled=False)
    assert main(["-d", "901", "902", "-e", "vit_tiny_8", "-np", "1"]) == 0
    shown = capsys.readouterr().out
    assert "Dataset901_Blob, Dataset902_Bare" in shown
    assert "token centres lie inside the median scan" in shown
    folder = tmp_path / "nnUNet_preprocessed"
    stored = {path.parent.name for path in folder.glob("*/*/*.b2nd") if path.parents[1].name == "Dataset901_Blob"}
    assert stored == {"nnsslPlans_vit_tiny_8_3d_fullres", "nnsslPlans_vit_tiny_8_pretrain"}
    assert len(list(folder.glob("Dataset902_Bare/nnsslPlans_vit_tiny_8_pretrain/*.b2nd"))) == 4
    assert not (folder / "Dataset902_Bare/nnsslPlans_vit_tiny_8_3d_fullres").exists()
    assert len(list(folder.glob("Dataset901_Blob/gt_segmentations/*.nii.gz"))) == 3
    assert (folder / "Dataset902_Bare/dataset_fingerprint.json").is_file()


def test_a_bad_case_is_listed_at_the_end_and_the_exit_code_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=3)
    path = folder / "labelsTr" / "case_1.nii.gz"
    SimpleITK.WriteImage(SimpleITK.ReadImage(path) * 7, path)
    assert main(["-d", "901", "-e", "vit_tiny_8", "-np", "1", "-c", "3d_fullres"]) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "case_1.nii.gz" in last
    assert "7" in last
    stored = (tmp_path / "nnUNet_preprocessed/Dataset901_Blob/nnsslPlans_vit_tiny_8_3d_fullres").glob("*_seg.b2nd")
    assert sorted(path.name for path in stored) == ["case_0_seg.b2nd", "case_2_seg.b2nd"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-d", "77"], "no such folder"),
        (["-d", "901", "-e", "vit_huge_16"], "known encoders"),
        (["-d", "901", "-intensity", "window:5,1"], "lower bound must be below"),
        (["-d", "901", "-intensity", "zscore"], "give percentile"),
        (["-d", "901", "-decoder", "swin_unetr"], "decoders that suit it: unet"),
        (["-d", "901", "-e", "vit_tiny_8", "--recipe", "smit_many"], "decoders that suit it: unet"),
        (["-d", "901", "--recipe", "smit"], "known recipes: 3dino, smit_many, smit_few"),
        (["-d", "901", "-channels", "sum"], "known rules: mix, replicate, reinit"),
        (["-d", "901", "-decoder", "segformer"], "known decoders: unet"),
        (["-d", "901", "-np", "0"], "1 or more"),
        (["-d", "901", "-gpu_memory_target", "0.2"], "too little"),
        (["-d", "901", "-plans_name", "a__b"], "plans name"),
        (["-d", "901", "-overwrite_target_spacing", "1", "0", "1"], "above 0"),
        (["-d", "901", "-pretrained_weights", "absent.safetensors"], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    words: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    assert main(["-np", "1", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert expected in lines[0]


def test_stock_plans_and_volumes_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=1)
    folder = tmp_path / "nnUNet_preprocessed/Dataset901_Blob"
    (folder / "nnUNetPlans_3d_fullres").mkdir(parents=True)
    (folder / "nnUNetPlans_3d_fullres/case.b2nd").touch()
    (folder / "nnUNetPlans.json").write_text('{"configurations": {}}')
    assert main(["-d", "901", "-e", "vit_tiny_8", "-np", "1", "-plans_name", "nnUNetPlans"]) == 2
    assert "give another -plans_name" in capsys.readouterr().err
    assert (folder / "nnUNetPlans.json").read_text() == '{"configurations": {}}'
    assert (folder / "nnUNetPlans_3d_fullres/case.b2nd").is_file()
    assert not (folder / "dataset_fingerprint.json").exists()


def test_planning_again_for_one_configuration_refuses_the_volumes_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    words = ["-d", "901", "-e", "vit_tiny_8", "-np", "1"]
    folder = tmp_path / "nnUNet_preprocessed/Dataset901_Blob"
    assert main(words) == 0
    again = [*words, "-c", "pretrain", "-overwrite_target_spacing", "2", "2", "2"]
    assert main(again) == 0
    plans = load_json(folder / "nnsslPlans_vit_tiny_8.json")
    check_stamp(folder, plans, "pretrain")
    with pytest.raises(ValueError, match=r"spacing was .* and is now \[2\.0, 2\.0, 2\.0\]"):
        check_stamp(folder, plans, "3d_fullres")


def test_a_missing_environment_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert main(["-d", "4"]) == 2
    assert "environment variable nnUNet_raw is not set" in capsys.readouterr().err


def test_intensity_comes_from_the_flag_then_the_weights_then_the_preset(tmp_path: Path) -> None:
    window = IntensityRange("window", -175.0, 250.0, (0.0, 1.0))
    path = tmp_path / "encoder.safetensors"
    encoder = build_encoder("vit_tiny_8", native_crop=(16, 24, 16), intensity=window)
    save_encoder(path, encoder, EncoderHeader("vit_tiny_8", (16, 24, 16), window))
    preset, _ = choose_encoder(command().parse_args(["-d", "4"]), ["CT"])
    weights, choice = choose_encoder(command().parse_args(["-d", "4", "-pretrained_weights", str(path)]), ["CT"])
    both = ["-d", "4", "-pretrained_weights", str(path), "-intensity", "percentile:1,99"]
    flag, flagged = choose_encoder(command().parse_args(both), ["CT"])
    assert (preset.name, preset.intensity) == ("vit_small_16", IntensityRange())
    assert (weights.name, weights.native_crop, weights.intensity) == ("vit_tiny_8", (16, 24, 16), window)
    assert "weights" in choice.why and choice.encoder is None
    assert flag.intensity == IntensityRange("percentile", 1.0, 99.0, (0.0, 1.0))
    assert flagged.encoder == window
    with pytest.raises(ValueError, match="does not fit -pretrained_weights, which hold vit_tiny_8"):
        choose_encoder(command().parse_args([*both, "-e", "vit_small_16"]), ["CT"])


def test_a_recipe_brings_its_encoder_and_the_flag_beats_its_window() -> None:
    words = ["-d", "4", "--recipe", "smit_many"]
    recipe, choice = choose_encoder(command().parse_args(words), ["CT"])
    assert (recipe.name, recipe.intensity) == ("smit_96", IntensityRange("window", -175.0, 250.0, (0.0, 1.0)))
    assert "recipe" in choice.why
    flag, _ = choose_encoder(command().parse_args([*words, "-intensity", "window:-100,100", "-e", "swin_tiny"]), ["CT"])
    assert (flag.name, flag.intensity.high) == ("swin_tiny", 100.0)


def test_the_spacing_of_the_pretraining_is_that_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder = build_encoder("swin_tiny", native_crop=(32, 64, 32))
    header = EncoderHeader("swin_tiny", (32, 64, 32), encoder.spec.intensity, spacing_mm=(1.0, 1.0, 1.25))
    save_encoder(path, encoder, header)
    spec, _ = choose_encoder(command().parse_args(["-d", "4", "-pretrained_weights", str(path)]), ["CT"])
    assert (spec.native_spacing, spec.native_crop) == ((1.0, 1.0, 1.25), (32, 64, 32))
    assert encoder.spec.native_spacing == (1.5, 1.5, 2.0)


def test_of_two_encoders_with_equal_tensors_the_one_asked_for_is_planned(tmp_path: Path) -> None:
    path = tmp_path / "smit.pth"
    tensors = build_encoder("smit_96").state_dict()
    torch.save({"state_dict": {name: tensor.half() for name, tensor in tensors.items()}}, path)
    words = ["-d", "4", "-pretrained_weights", str(path)]
    assert choose_encoder(command().parse_args(words), ["CT"])[0].name == "smit_96"
    asked, _ = choose_encoder(command().parse_args([*words, "-e", "smit_128"]), ["CT"])
    assert (asked.name, asked.native_crop) == ("smit_128", (128, 128, 128))
    with pytest.raises(ValueError, match="-e swin_tiny does not fit"):
        choose_encoder(command().parse_args([*words, "-e", "swin_tiny"]), ["CT"])


def test_a_recipes_plans_stand_beside_those_of_the_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    words = ["-d", "901", "-e", "swin_tiny", "-np", "1", "--no_pp"]
    assert main(words) == main([*words, "--recipe", "smit_many"]) == 0
    folder = tmp_path / "nnUNet_preprocessed/Dataset901_Blob"
    assert sorted(path.stem for path in folder.glob("nnsslPlans*.json")) == [
        "nnsslPlans_swin_tiny", "nnsslPlans_swin_tiny_smit_many",
    ]  # fmt: skip


def test_an_encoder_of_ct_on_mr_is_recorded_and_accepted_by_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    save_json(load_json(folder / "dataset.json") | {"channel_names": {"0": "T1"}}, folder / "dataset.json")
    path, crop = tmp_path / "encoder.safetensors", (32, 32, 32)
    encoder = build_encoder("swin_tiny", native_crop=crop)
    save_encoder(path, encoder, EncoderHeader("swin_tiny", crop, encoder.spec.intensity))
    assert main(["-d", "901", "-pretrained_weights", str(path), "-np", "1", "--no_pp"]) == 0
    plans = load_json(tmp_path / "nnUNet_preprocessed/Dataset901_Blob/nnsslPlans_swin_tiny.json")
    assert plans["nnssl"]["intensity"]["kind"] == "percentile"
    load_for_plans(path, plans, "3d_fullres", allow_partial=False, allow_intensity=False)
    save_encoder(path, encoder, EncoderHeader("swin_tiny", crop, IntensityRange("window", -1.0, 1.0, (0.0, 1.0))))
    with pytest.raises(ValueError, match="add --allow_intensity"):
        load_for_plans(path, plans, "3d_fullres", allow_partial=False, allow_intensity=False)


def test_a_swin_goes_through_with_two_channels_of_mr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_dataset(use_folders(tmp_path, monkeypatch), "Dataset901_Blob", cases=2)
    for case in range(2):
        shutil.copy(folder / f"imagesTr/case_{case}_0000.nii.gz", folder / f"imagesTr/case_{case}_0001.nii.gz")
    description = load_json(folder / "dataset.json") | {"channel_names": {"0": "T1", "1": "T2"}}
    save_json(description, folder / "dataset.json")
    words = ["-d", "901", "-e", "swin_tiny", "-np", "1", "-channels", "mix", "-decoder", "unet"]
    assert main([*words, "-overwrite_target_spacing", "1", "1", "1.2", "-c", "3d_fullres"]) == 0
    preprocessed = tmp_path / "nnUNet_preprocessed/Dataset901_Blob"
    plans = load_json(preprocessed / "nnsslPlans_swin_tiny.json")
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"]["channels"] == "mix"
    assert (configuration["spacing"], configuration["patch_size"]) == ([1.0, 1.0, 1.2], [32, 32, 32])
    assert plans["nnssl"]["intensity"] | {"encoder_range": None} == {
        "kind": "percentile", "low": 5.0, "high": 95.0, "encoder_range": None,
    }  # fmt: skip
    stored = blosc2.open(str(preprocessed / "nnsslPlans_swin_tiny_3d_fullres/case_0.b2nd"))[:]
    assert stored.shape[0] == 2
    assert [float((stored == bound).mean()) for bound in (0, 1)] == pytest.approx([0.05, 0.05], abs=0.01)  # per tail


def test_a_window_with_negative_bounds_is_read() -> None:
    assert read_intensity("window:-175,250", IntensityRange()) == IntensityRange("window", -175.0, 250.0)


def test_the_median_hippocampus_holds_two_hundred_tokens(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(shared_data / "Dataset004_Hippocampus", use_folders(tmp_path, monkeypatch), count=6)
    assert main(["-d", "4", "-e", "vit_tiny_8", "-np", "1", "--no_pp"]) == 0
    plans = load_json(tmp_path / "nnUNet_preprocessed/Dataset004_Hippocampus/nnsslPlans_vit_tiny_8.json")
    configuration = plans["configurations"]["3d_fullres"]
    assert centres_inside(configuration["patch_size"], configuration["median_image_size_in_voxels"], 8) >= 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Dataset101_HeadNeckCT", ["-intensity", "window:-175,250"]),
        ("Dataset103_CardiacCine", []),
        ("Dataset104_BrainTumour2ch", []),
        ("Dataset201_UnlabelledCT", []),
        ("Dataset201_UnlabelledCT", ["-e", "swin_tiny"]),
        ("Dataset103_CardiacCine", ["-e", "swin_tiny"]),
    ],
)
def test_real_scans_go_through(
    name: str, words: list[str], shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link(shared_data / name, use_folders(tmp_path, monkeypatch), count=2)
    assert main(["-d", name, "-np", "1", *words]) == 0
    assert list(tmp_path.glob("nnUNet_preprocessed/*/*_pretrain/*.b2nd"))


def link(source: Path, raw: Path, count: int) -> None:
    """The first cases of a real data set, linked into a temporary raw folder."""
    for images in sorted(source.glob("imagesTr/*_0000.nii.gz"))[:count]:
        case = images.name.removesuffix("_0000.nii.gz")
        for path in [*source.glob(f"imagesTr/{case}_????.nii.gz"), *source.glob(f"labelsTr/{case}.nii.gz")]:
            target = raw / source.name / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    (raw / source.name / "dataset.json").symlink_to(source / "dataset.json")
