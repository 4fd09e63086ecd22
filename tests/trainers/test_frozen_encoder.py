"""Training leaves the encoder as it is, follows the recipe, and writes checkpoints that anyone can read safely."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.optimizers import WarmupCosineSchedule

from nnssl.inference.checkpoint import read_checkpoint
from nnssl.trainers.finetune_schedule import IterationSchedule, learning_rate
from nnssl.trainers.frozen_encoder import FrozenEncoderTrainer
from tests.toy_dataset import set_environment, toy_plans, write_preprocessed, write_raw
from tests.trainers.finetune_toy import make_trainer


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    raw = write_raw(folder)
    write_preprocessed(folder, raw)
    return folder


@pytest.fixture
def environment(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    set_environment(toy, monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return toy / "nnUNet_preprocessed" / "Dataset777_Toy"


def split_weights(network: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    state = copy.deepcopy(network.state_dict())
    encoder = {name: value for name, value in state.items() if ".encoder." in f".{name}"}
    return encoder, {name: value for name, value in state.items() if name not in encoder}


@pytest.fixture(scope="module")
def trained(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FrozenEncoderTrainer, Any, Path]:
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        set_environment(toy, patch)
        patch.setenv("nnUNet_results", str(results))
        trainer = make_trainer(toy / "nnUNet_preprocessed" / "Dataset777_Toy", num_labelled=3)
        trainer.initialize()
        before = split_weights(trainer.network)
        trainer.run_training()
    return trainer, before, Path(trainer.output_folder)


def test_encoder_is_bit_identical_after_training_and_everything_else_moved(trained: Any) -> None:
    trainer, (encoder, rest), _ = trained
    encoder_after, rest_after = split_weights(trainer.network)
    assert len(encoder) > 100
    assert all(torch.equal(value, encoder_after[name]) for name, value in encoder.items())
    moved = [name for name, value in rest.items() if not torch.equal(value, rest_after[name])]
    for part in ("neck.spm", "neck.interactions", "decoder"):
        assert any(name.startswith(part) for name in moved), part
    assert len(moved) > 0.9 * len([name for name, value in rest.items() if value.is_floating_point()])


def test_checkpoint_loads_without_unpickling_objects_and_names_the_stock_trainer(trained: Any) -> None:
    _, _, folder = trained
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["nnssl_trainer_name"] == "FrozenEncoderTrainer"
    assert checkpoint["init_args"]["configuration"] == "3d_fullres"
    assert checkpoint["nnssl_run"]["num_labelled"] == 3
    assert checkpoint["current_epoch"] == 2


def test_results_hold_no_dataset_section(trained: Any) -> None:
    _, _, folder = trained
    files = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert {"plans.json", "dataset.json", "checkpoint_final.pth", "debug.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        assert b"secret_subject" not in content and b"/secret/path" not in content, path


def test_training_continues_where_it_stopped(trained: Any, environment: Path) -> None:
    _, _, folder = trained
    trainer = make_trainer(environment)
    trainer.load_checkpoint(str(folder / "checkpoint_final.pth"))
    assert trainer.current_epoch == 2
    expected = torch.load(folder / "checkpoint_final.pth", weights_only=True)["network_weights"]
    assert all(torch.equal(value, expected[name]) for name, value in trainer.network.state_dict().items())


def test_pretrained_mode_without_an_encoder_refuses_to_train(environment: Path) -> None:
    with pytest.raises(RuntimeError, match="set_encoder was not called"):
        make_trainer(environment, mode="pretrained").on_train_start()


def test_plans_without_a_run_are_refused(environment: Path) -> None:
    with pytest.raises(ValueError, match="start it with nnssl_train"):
        FrozenEncoderTrainer(toy_plans(), "3d_fullres", 0, {})


def test_set_encoder_replaces_the_weights_of_the_network(environment: Path) -> None:
    trainer = make_trainer(environment, mode="pretrained")
    trainer.initialize()
    weights = {name: value + 1 for name, value in trainer.network.encoder.state_dict().items()}
    trainer.set_encoder(weights)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.network.encoder.state_dict().items())
    assert trainer.has_encoder


def test_few_labels_are_nested_and_validation_cases_stay_the_same(environment: Path) -> None:
    splits = [make_trainer(environment, num_labelled=number).do_split() for number in (1, 2, 4)]
    assert [len(train) for train, _ in splits] == [1, 2, 4]
    assert set(splits[0][0]) < set(splits[1][0]) < set(splits[2][0])
    assert all(validation == splits[0][1] for _, validation in splits)
    assert set(splits[2][0]).isdisjoint(splits[0][1])


def test_recipe_comes_from_the_plans(environment: Path) -> None:
    trainer = make_trainer(environment)
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (2, 2, 1)
    optimised = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert optimised.isdisjoint({id(parameter) for parameter in trainer.network.encoder.parameters()})
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.01


def test_a_failed_write_leaves_the_earlier_checkpoint_whole(environment: Path, tmp_path: Path) -> None:
    import resource

    trainer = make_trainer(environment)
    trainer.initialize()
    file = tmp_path / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))  # the disk is "full" after 1 MB
    try:
        with pytest.raises(OSError):
            trainer.save_checkpoint(str(file))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*.pth")] == [file.name]


@pytest.mark.parametrize("iteration", [0, 1, 29, 30, 100, 299])
def test_learning_rate_is_that_of_monai(iteration: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    peer = WarmupCosineSchedule(torch.optim.SGD([parameter], lr=2e-4), warmup_steps=30, t_total=300)
    assert learning_rate(iteration, 300, 30, 2e-4) == pytest.approx(2e-4 * peer.lr_lambda(iteration), rel=1e-12)


def test_schedule_moves_every_iteration_and_jumps_to_an_epoch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = IterationSchedule(optimizer, 1.0, epochs=4, per_epoch=5, warmup_fraction=0.5)
    rates = []
    for epoch in range(2):
        schedule.step(epoch)
        for _ in range(5):
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.next_iteration()
    assert rates == pytest.approx([step / 10 for step in range(10)])
    schedule.step(3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))


def test_a_foreign_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"network_weights": Bomb()}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="Python objects other than tensors"):
        read_checkpoint(tmp_path / "checkpoint_final.pth")
    assert not (tmp_path / "exploded").exists()


def test_labels_with_sides_switch_off_left_right_mirroring(environment: Path) -> None:
    trainer = make_trainer(environment)
    trainer.dataset_json["labels"] = {"background": 0, "RightParotid": 1, "LeftParotid": 2}
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[3] == (1, 2)
    assert trainer.inference_allowed_mirroring_axes == (1, 2)


def test_thick_slices_are_loaded_without_a_margin(environment: Path) -> None:
    trainer = make_trainer(environment)
    trainer.configuration_manager.configuration["spacing"] = [1.5, 1.5, 10.0]
    _, within_slice, loaded, _ = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert within_slice
    assert loaded[2] == trainer.configuration_manager.patch_size[2]
    assert all(loaded[axis] > trainer.configuration_manager.patch_size[axis] for axis in (0, 1))


def test_nnunets_look_up_finds_this_very_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    import nnssl.trainers

    monkeypatch.setenv("nnUNet_extTrainer", str(Path(nnssl.trainers.__path__[0]) / "nnunet_plugin"))
    assert recursive_find_trainer_class_by_name("FrozenEncoderTrainer") is FrozenEncoderTrainer
