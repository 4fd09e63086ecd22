"""What nnU-Net's fine-tuning does with a checkpoint, written from its eight rules and from nothing of this package.

The rules are listed in docs/weights.md. Every broken rule is an AssertionError that says which one.
"""

import pydoc
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

KNOWN_NAMES = ("ResEncL", "NoSkipResEncL", "PrimusS", "PrimusB", "PrimusM", "PrimusL")
HOOKS = ("ResidualEncoderUNet", "PlainConvUNet")
ABSOLUTE_PATH = re.compile(r"(^|[\s\"'])(/|[A-Za-z]:\\)[\w.-]+[/\\]")


def fine_tuning_network(path: Path, input_channels: int, num_classes: int) -> nn.Module:
    """The network of a checkpoint with the pretrained encoder and stem inside."""
    checkpoint = torch.load(path, weights_only=True, map_location="cpu")  # rule 1
    plan = checkpoint["nnssl_adaptation_plan"]
    check_plan(plan)
    check_privacy(checkpoint)
    architecture = plan["architecture_plans"]
    network = build(architecture["arch_class_name"], architecture["arch_kwargs"], input_channels, num_classes)
    check_attributes(network, plan)
    load(network, checkpoint["network_weights"], plan, input_channels)
    return network.eval()


def check_plan(plan: dict[str, Any]) -> None:
    """Rules 1, 5 and 6: what must be there, as lists, with a spacing."""
    assert "key_to_lpe" in plan, "rule 1: key_to_lpe must exist"
    first = next(iter(plan["pretrain_plan"]["configurations"].values()))
    sizes = [first["patch_size"], plan["recommended_downstream_patchsize"], plan["pretrain_patch_size"]]
    assert all(type(size) is list for size in sizes), "rule 5: sizes must be lists"
    assert sizes[0] == sizes[1] == sizes[2], "rule 5: another size stops networks without learnt positions"
    assert len(first["spacing"]) == 3, "rule 6: a spacing of None stops the planner"
    assert plan["architecture_plans"]["arch_kwargs_requiring_import"] == []


def check_privacy(checkpoint: dict[str, Any]) -> None:
    """No absolute path in any string."""
    for text in strings({key: value for key, value in checkpoint.items() if key != "network_weights"}):
        assert not ABSOLUTE_PATH.search(text), f"a path travels with the weights: {text}"


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, inner in value.items() for text in (str(key), *strings(inner))]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in strings(inner)]
    return [value] if isinstance(value, str) else []


def build(name: str, words: dict[str, Any], input_channels: int, num_classes: int) -> nn.Module:
    """Rule 2: a dotted class whose name ends like nnU-Net's own."""
    assert name not in KNOWN_NAMES and name.endswith(HOOKS), f"rule 2: {name} is not built from its dotted name"
    found: Any = pydoc.locate(name)
    assert found is not None, f"rule 2: {name} cannot be imported"
    network = found(input_channels=input_channels, num_classes=num_classes, **words, deep_supervision=False)
    assert not hasattr(network, "initialize"), "nnU-Net would apply it"
    return network


def check_attributes(network: Any, plan: dict[str, Any]) -> None:
    """Rule 2: the instance says the same keys as the plan."""
    for key in ("key_to_encoder", "key_to_stem", "key_to_lpe"):
        assert getattr(network, key) == plan[key], f"rule 2: {key}"
    assert list(network.keys_to_in_proj) == plan["keys_to_in_proj"], "rule 2: keys_to_in_proj"


def load(network: nn.Module, weights: dict[str, Tensor], plan: dict[str, Any], input_channels: int) -> None:
    """Rules 3 and 4: encoder and stem strictly, by prefix; more channels get the stem's first kernel repeated."""
    encoder_key, stem_key = plan["key_to_encoder"], plan["key_to_stem"]
    encoder, stem = stripped(network, weights, encoder_key), stripped(network, weights, stem_key)
    assert set(weights) == {f"{encoder_key}.{name}" for name in encoder} | {f"{stem_key}.{name}" for name in stem}
    stored = plan["pretrain_num_input_channels"]
    if input_channels > stored:
        for key in plan["keys_to_in_proj"]:
            name = key.removeprefix(f"{stem_key}.") + ".weight"
            stem[name] = stem[name].repeat(1, input_channels, 1, 1, 1) / input_channels
    assert "cls_token" not in encoder, "rule 4: the reader removes a tensor of this name"
    if plan["key_to_lpe"] is None:
        assert "pos_embed" not in encoder, "rule 4: positions that nobody resamples"
    network.get_submodule(encoder_key).load_state_dict(encoder)
    network.get_submodule(stem_key).load_state_dict(stem)


def stripped(network: nn.Module, weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Rule 3: selection by startswith, stripping by replace on all occurrences."""
    for name, _ in network.named_modules():
        assert name in ("", prefix) or not name.startswith(prefix) or name.startswith(prefix + "."), f"rule 3: {name}"
    chosen = {name: tensor for name, tensor in weights.items() if name.startswith(prefix)}
    assert chosen and all(name.count(prefix) == 1 for name in chosen), f"rule 3: {prefix}"
    return {name.replace(prefix, "").removeprefix("."): tensor for name, tensor in chosen.items()}
