"""The trainer stops early, samples and weighs as its recipe says, and notices when frozen weights move."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss

from nnssl.losses.segmentation import bce_dice
from nnssl.trainers.tumour_sampling import TumourLoader
from tests.toy_dataset import set_environment, write_preprocessed, write_raw
from tests.trainers.finetune_toy import make_trainer


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_preprocessed(folder, write_raw(folder, cases=3))
    return folder


@pytest.fixture
def environment(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    set_environment(toy, monkeypatch)
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    yield toy / "nnUNet_preprocessed" / "Dataset777_Toy"


def counts(true: int, false: int, missed: int) -> list[dict]:
    """One validation batch of two classes, as nnU-Net counts it."""
    words = {"tp_hard": true, "fp_hard": false, "fn_hard": missed}
    return [{"loss": np.float32(0.1), **{word: np.array([value, value]) for word, value in words.items()}}]


def test_a_continued_training_waits_no_longer_than_an_unbroken_one(environment: Path) -> None:
    quick = {"epochs": 9, "iterations_per_epoch": 1, "early_stopping": 2}
    trainer = make_trainer(environment, recipe=quick)
    trainer.initialize()
    history = trainer.logger.local_logger.my_fantastic_logging
    history |= {key: [0.0, 0.0] for key in history} | {"ema_fg_dice": [0.999, 0.9]}
    history["dice_per_class_or_region"] = [[0.0], [0.0]]
    trainer.current_epoch = 1  # the second epoch of nine is over
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))

    again = make_trainer(environment, recipe=quick)
    again.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    again.run_training()  # 0.9 * 0.9 + 0.1 * Dice stays below 0.999: the second epoch of waiting
    assert again.current_epoch == 3
    folder = Path(again.output_folder)
    assert "early stopping after 3 epochs" in "".join(path.read_text() for path in folder.glob("training_log*"))
    final = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert final["current_epoch"] == 3 and not (folder / "checkpoint_latest.pth").exists()

    once_more = make_trainer(environment, recipe=quick)
    once_more.load_checkpoint(str(folder / "checkpoint_final.pth"))
    once_more.run_training()
    assert once_more.current_epoch == 3 and once_more.dataloader_train is None


def test_validation_without_foreground_leaves_the_moving_average(environment: Path) -> None:
    trainer = make_trainer(environment)
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning):
        trainer.on_validation_epoch_end(counts(0, 0, 0))
    trainer.current_epoch = 1
    trainer.on_validation_epoch_end(counts(2, 0, 0))
    trainer.current_epoch = 2
    with np.errstate(invalid="ignore"), pytest.warns(RuntimeWarning):
        trainer.on_validation_epoch_end(counts(0, 0, 0))
    assert trainer.logger.get_value("ema_fg_dice", step=None) == pytest.approx([0.0, 0.1, 0.1])


def test_a_frozen_weight_that_moves_ends_the_training(environment: Path) -> None:
    trainer = make_trainer(environment)
    trainer.initialize()
    trainer.on_train_start()
    trainer.bare_network().encoder.blocks[0].attn.qkv.weight.data[0, 0] += 1e-6
    with pytest.raises(RuntimeError, match="the frozen part of the encoder changed"):
        trainer.on_train_end()
    assert not (Path(trainer.output_folder) / "checkpoint_final.pth").exists()


def test_a_batch_of_one_holds_foreground_by_chance_instead_of_never(environment: Path) -> None:
    for batch, share, by_chance in ((1, 0.33, True), (1, 0.6, False), (2, 0.33, False), (2, 0.0, True)):
        trainer = make_trainer(environment, recipe={"foreground_oversampling": share}, batch_size=batch)
        assert trainer.probabilistic_oversampling is by_chance


def test_the_recipe_chooses_loss_and_loader(environment: Path) -> None:
    plain = make_trainer(environment)
    plain.initialize()
    assert isinstance(plain.loss, DC_and_CE_loss)
    trainer = make_trainer(environment, recipe={"loss": "bce_dice", "sampling": "tumour_1to1"})
    trainer.dataset_json["labels"] = {"background": 0, "Ball": 1}
    trainer.label_manager = trainer.plans_manager.get_label_manager(trainer.dataset_json)
    trainer.initialize()
    assert isinstance(trainer.loss, partial) and trainer.loss.func is bce_dice
    with pytest.warns(UserWarning, match="no crop without tumour"):  # the toy's ball fills it
        training, validation = trainer.get_dataloaders()
    assert isinstance(training.data_loader, TumourLoader)
    assert not isinstance(validation.data_loader, TumourLoader)
    assert next(training)["data"].shape == (2, 1, *trainer.configuration_manager.patch_size)
