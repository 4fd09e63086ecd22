"""Which intensity rule holds: that of the flag, the recipe, the weights or the encoder, in this order, by modality."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nnssl.encoders.base import IntensityRange
from nnssl.recipe import Preset

CT_CHANNEL = "ct"  # nnU-Net's name of a channel in Hounsfield units, in any case
OTHER_PERCENTILES = (5.0, 95.0)  # where Hounsfield units mean nothing (SMIT benchmark, 3.3.2)
SCOPE = "percentiles are of the whole image, zeros around the body included (the paper does not say)"


@dataclass(frozen=True)
class IntensityChoice:
    """The rule, and why.

    Attributes:
        encoder: what the encoder saw in pretraining, where that is known to differ from the rule: fine-tuning accepts
            this difference and no other. None: the same as the rule.
    """

    intensity: IntensityRange
    why: str
    encoder: IntensityRange | None = None


def is_ct(channel_names: Sequence[str]) -> bool:
    """Whether all channels are in Hounsfield units, by nnU-Net's convention ("CT" in dataset.json)."""
    return all(name.casefold() == CT_CHANNEL for name in channel_names)


def choose_intensity(
    preset: IntensityRange,
    channel_names: Sequence[str],
    *,
    flag: IntensityRange | None = None,
    recipe: Preset | None = None,
    weights: IntensityRange | None = None,
) -> IntensityChoice:
    """One rule for all channels of all data sets that are planned together.

    A window that reaches below 0 is in Hounsfield units: on channels that are not all CT it gives way to percentiles
    5 and 95, as in the SMIT benchmark (encoders pretrained on CT, fine-tuned on MR). Its own windows for MR lung
    tumours (0 to 400) start at 0 and are kept wherever they are asked for.

    Args:
        preset: the encoder's own rule.
        channel_names: of all data sets, as in dataset.json.
        flag: from the command line; taken as it is.
        recipe: a paper's fine-tuning.
        weights: what a weight file says.
    """
    known = weights or preset
    plain = _by_modality(known, channel_names, of_weights=weights is not None)
    wish = _recipe_wish(known, channel_names, recipe)
    if flag is not None:
        choice = IntensityChoice(replace(flag, encoder_range=known.encoder_range), "-intensity")
    else:
        choice = wish or plain
    seen = weights or (plain.intensity if wish else None)  # a recipe fine-tunes what another plan pretrained
    return replace(choice, encoder=None if seen == choice.intensity else seen)


def _by_modality(known: IntensityRange, channel_names: Sequence[str], *, of_weights: bool) -> IntensityChoice:
    """What the encoder saw, or percentiles in place of Hounsfield units that the channels do not have."""
    source = "what the weights were trained with" if of_weights else "the encoder's preset"
    if known.kind != "window" or known.low >= 0 or is_ct(channel_names):
        return IntensityChoice(known, source)
    low, high = OTHER_PERCENTILES
    reason = f"{source} is {known} in Hounsfield units, and not every channel is CT ({_names(channel_names)})"
    return IntensityChoice(replace(known, kind="percentile", low=low, high=high), f"{reason}; {SCOPE}")


def _recipe_wish(known: IntensityRange, channel_names: Sequence[str], recipe: Preset | None) -> IntensityChoice | None:
    ct = is_ct(channel_names)
    bounds = None if recipe is None else recipe.ct_window_hu if ct else recipe.mr_percentiles
    if bounds is None:
        return None
    kind, why = ("window", "recipe, all channels are CT") if ct else ("percentile", f"recipe, not all CT; {SCOPE}")
    return IntensityChoice(replace(known, kind=kind, low=bounds[0], high=bounds[1]), why)


def _names(channel_names: Sequence[str]) -> str:
    return ", ".join(sorted(set(channel_names)))
