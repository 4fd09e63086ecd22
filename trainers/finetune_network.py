"""What a run may change of the planned network: decoder, channels, and how much of the encoder is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from nnssl.config import override
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import EncoderSpec
from nnssl.networks import CHANNEL_RULES, check_decoder

TUNING = ("frozen", "unfreeze_last", "lora_rank")


@dataclass(frozen=True)
class NetworkSettings:
    """What --set can change beside FineTuneRecipe; words of EncoderSegmentor, and the batch."""

    batch_size: int
    decoder: str = "unet"
    norm: str | None = None  # of the decoder; None: the decoder's default
    channels: str = "mix"
    adapter_width: int | None = None
    precision: str = "auto"
    offset_order: str = "correct"
    frozen: bool = True  # False: all of the encoder is trained
    unfreeze_last: int = 0  # blocks of a frozen encoder that are trained all the same
    lora_rank: int = 0  # of low-rank adapters in a frozen encoder's attention; 0: none

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("adapter_width", 1), ("unfreeze_last", 0), ("lora_rank", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"setting {name!r}: must be at least {least}, got {value}")
        if self.channels not in CHANNEL_RULES:
            raise ValueError(f"setting 'channels': {self.channels!r} is unknown; known: {', '.join(CHANNEL_RULES)}")
        if not self.frozen and (self.unfreeze_last or self.lora_rank):
            raise ValueError("settings unfreeze_last and lora_rank are for a frozen encoder; add frozen=true")

    @property
    def tuning(self) -> str:
        """How much of the encoder is trained, in a few words."""
        if not self.frozen:
            return "full"
        parts = {"last": self.unfreeze_last, "lora": self.lora_rank}
        return ", ".join(f"{name} {size}" for name, size in parts.items() if size) or "frozen"


def network_settings(configuration: Mapping[str, Any]) -> NetworkSettings:
    """The settings of a planned configuration."""
    arguments = configuration["architecture"]["arch_kwargs"]
    given = {word: arguments[word] for word in NetworkSettings.__dataclass_fields__ if word in arguments}
    return NetworkSettings(configuration["batch_size"], **given)


def for_mode(settings: NetworkSettings, mode: str) -> NetworkSettings:
    """The controls train all of a random encoder ("scratch") or none of it ("random_frozen"), whatever was planned."""
    if mode == "pretrained":
        return settings
    return replace(settings, frozen=mode != "scratch", unfreeze_last=0, lora_rank=0)


def changed_network(configuration: Mapping[str, Any], assignments: Sequence[str], mode: str) -> NetworkSettings:
    """The settings of a run: the planned ones with key=value applied, checked against the encoder.

    Raises:
        ValueError: the encoder has no such decoder or fewer blocks, or a control was asked for with tuning.
    """
    settings = override(network_settings(configuration), assignments)
    tuning = [word for word in assignments if word.partition("=")[0] in TUNING]
    if mode != "pretrained" and tuning:
        part = "all" if mode == "scratch" else "none"
        raise ValueError(
            f"{tuning[0]} goes with -pretrained_weights: the control {mode} trains {part} of a random encoder; leave "
            "out --frozen, --full, -unfreeze_last and -lora"
        )
    spec = planned_spec(configuration)
    check_decoder(spec, settings.decoder)
    if settings.unfreeze_last > spec.depth:
        raise ValueError(f"unfreeze_last={settings.unfreeze_last}: {spec.name} has {spec.depth} blocks; use --full")
    return for_mode(settings, mode)


def write_settings(configuration: dict[str, Any], settings: NetworkSettings) -> None:
    """Put settings into a configuration; a default that the plans do not name stays unnamed."""
    arguments = configuration["architecture"]["arch_kwargs"]
    defaults = asdict(NetworkSettings(configuration["batch_size"]))
    values = asdict(settings)
    configuration["batch_size"] = values.pop("batch_size")
    arguments.update({word: value for word, value in values.items() if word in arguments or value != defaults[word]})


def planned_spec(configuration: Mapping[str, Any]) -> EncoderSpec:
    """The encoder of a planned configuration."""
    arguments = configuration["architecture"]["arch_kwargs"]
    return encoder_spec(
        arguments["encoder"], tuple(arguments["native_crop"]), options=arguments.get("encoder_options") or {}
    )


def encoder_channels(configuration: Mapping[str, Any]) -> int:
    """Image channels that the encoder of a planned configuration reads together."""
    together = network_settings(configuration).channels != "mix"
    return len(configuration["normalization_schemes"]) if together else 1
