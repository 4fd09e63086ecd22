"""A run's network settings: what the flags make of the planned network, and what is refused."""

from typing import Any

import pytest

from nnssl.trainers.finetune_network import (
    NetworkSettings,
    changed_network,
    encoder_channels,
    network_settings,
    write_settings,
)
from tests.toy_dataset import toy_plans


def planned(**words: Any) -> dict[str, Any]:
    configuration = toy_plans()["configurations"]["3d_fullres"]
    configuration["architecture"]["arch_kwargs"].update(words)
    return configuration


@pytest.mark.parametrize(
    ("words", "tuning"),
    [
        ([], "frozen"),
        (["frozen=false"], "full"),
        (["unfreeze_last=3"], "last 3"),
        (["lora_rank=4"], "lora 4"),
        (["unfreeze_last=3", "lora_rank=4"], "last 3, lora 4"),
    ],
)
def test_settings_say_how_much_is_trained(words: list[str], tuning: str) -> None:
    assert changed_network(planned(), words, "pretrained").tuning == tuning


@pytest.mark.parametrize(("mode", "tuning"), [("pretrained", "full"), ("random_frozen", "frozen"), ("scratch", "full")])
def test_controls_are_what_they_say_whatever_was_planned(mode: str, tuning: str) -> None:
    assert changed_network(planned(frozen=False), [], mode).tuning == tuning
    expected = "last 2" if mode == "pretrained" else tuning
    assert changed_network(planned(unfreeze_last=2), [], mode).tuning == expected


@pytest.mark.parametrize(
    ("words", "mode", "reason"),
    [
        (["unfreeze_last=13"], "pretrained", "vit_tiny_8 has 12 blocks; use --full"),
        (["unfreeze_last=-1"], "pretrained", "must be at least 0, got -1"),
        (["frozen=false", "lora_rank=2"], "pretrained", "for a frozen encoder"),
        (["lora_rank=2"], "random_frozen", "goes with -pretrained_weights"),
        (["decoder=swin_unetr"], "pretrained", "decoders that suit it: unet, unetr, linear"),
        (["decoder=nix"], "scratch", "known decoders: unet, swin_unetr, unetr, linear"),
        (["channels=sum"], "pretrained", "known: mix, replicate, reinit"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], mode: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        changed_network(planned(), words, mode)


def test_only_what_differs_from_the_defaults_is_written() -> None:
    configuration = planned()
    before = set(configuration["architecture"]["arch_kwargs"])
    write_settings(configuration, changed_network(configuration, ["batch_size=5", "lora_rank=4"], "pretrained"))
    arguments = configuration["architecture"]["arch_kwargs"]
    assert set(arguments) - before == {"lora_rank"}
    assert (arguments["lora_rank"], configuration["batch_size"]) == (4, 5)
    assert network_settings(configuration) == NetworkSettings(
        5, adapter_width=24, precision="fp32", frozen=True, lora_rank=4
    )


@pytest.mark.parametrize(("channels", "together"), [("mix", 1), ("replicate", 3), ("reinit", 3)])
def test_an_encoder_reads_one_channel_or_all_together(channels: str, together: int) -> None:
    configuration = planned(channels=channels)
    configuration["normalization_schemes"] = ["CTNormalization"] * 3
    assert encoder_channels(configuration) == together
