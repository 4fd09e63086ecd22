"""The Swin transformer against MONAI, its published sizes, axes, masks and gradients."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from nnssl.encoders import ENCODERS, build_encoder, encoder_spec
from nnssl.encoders.swin import MERGE_ORDERS, PatchMerging, SwinShape, SwinTransformer
from tests.rules import rule_tensor

MEDIUM = SwinShape(24, (2, 2, 2, 2), (2, 2, 4, 8), 4, 96)
MONAI_W4 = replace(MEDIUM, width=12, taps="pre_block", clamp_window=True)
MONAI_W7 = replace(MONAI_W4, window=7, qkv_bias=True, patch_norm=False)
TINY = SwinShape(8, (1, 2, 2, 2), (1, 2, 2, 4), 4, 64)


def _build(shape: SwinShape, drop_path: float = 0.0) -> SwinTransformer:
    torch.manual_seed(0)
    return shape.build(shape.spec("swin_test", None, None), drop_path).eval()


def _rule_made(shape: SwinShape) -> SwinTransformer:
    """Weights of unit scale, so that every part matters."""
    encoder = _build(shape)
    for name, parameter in encoder.named_parameters():
        parameter.data = torch.from_numpy(rule_tensor(name, tuple(parameter.shape)))
    return encoder


def _monai(shape: SwinShape, merging: str, ours: SwinTransformer) -> torch.nn.Module:
    """MONAI's transformer with our weights under its names."""
    swin = pytest.importorskip("monai.networks.nets.swin_unetr")
    theirs = swin.SwinTransformer(
        1,
        shape.width,
        (shape.window,) * 3,
        (2, 2, 2),
        shape.depths,
        shape.heads,
        qkv_bias=shape.qkv_bias,
        patch_norm=shape.patch_norm,
        downsample=merging,
    ).eval()
    state = theirs.state_dict()
    for name, value in ours.state_dict().items():
        for stage in range(4):
            name = name.replace(f"layers.{stage}.", f"layers{stage + 1}.0.")
        name = name.replace("mlp.fc", "mlp.linear")
        if name != "mask_token":
            state[name] = value
    theirs.load_state_dict(state)  # strict: every other name of theirs is an index
    return theirs


@pytest.mark.parametrize(
    ("window", "merging", "order"),
    [
        (4, "merging", "monai15"),
        (4, "mergingv2", "v2"),
        (7, "merging", "monai15"),
        pytest.param(7, "mergingv2", "v2", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("crop", [(32, 64, 64), pytest.param((64, 96, 64), marks=pytest.mark.slow)])
def test_outputs_and_gradients_are_those_of_monai(
    crop: tuple[int, int, int], window: int, merging: str, order: str
) -> None:
    shape = replace({4: MONAI_W4, 7: MONAI_W7}[window], merge_order=order)
    ours = _rule_made(shape)
    theirs = _monai(shape, merging, ours)
    volume = torch.randn(1, 1, *crop)
    upstream, grads = [], []
    for encode in (lambda: ours(volume).maps, lambda: theirs(volume, normalize=True)):
        outputs = encode()
        upstream = upstream or [torch.randn_like(output) for output in outputs]
        loss = sum((output * weight).mean() for output, weight in zip(outputs, upstream, strict=True))
        grads.append((outputs, loss))
    for found, expected in zip(*(outputs for outputs, _ in grads), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for _, loss in grads:
        loss.backward()
    reached = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        for stage in range(4):
            name = name.replace(f"layers.{stage}.", f"layers{stage + 1}.0.")
        other = reached.get(name.replace("mlp.fc", "mlp.linear"))
        if other is not None:
            scale = other.grad.abs().max().item()
            torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5 * scale, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("smit_96", {}, 10_565_632),
        ("smit_128", {}, 10_565_632),
        ("smit_96", {"qkv_bias": True}, 10_573_408),
        ("smit_96", {"qkv_bias": True, "depths": [2, 2, 12, 2]}, 12_363_840),
        ("smit_repo", {}, 8_763_784),
        ("swin_unetr", {}, 8_062_002),
    ],
)
def test_published_sizes_have_their_parameters(name: str, options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        encoder = build_encoder(name, options=options)
    assert (
        sum(parameter.numel() for parameter in encoder.parameters()) - encoder.get_parameter("mask_token").numel()
        == count
    )


def test_large_sizes_have_their_parameters_in_millions() -> None:
    with torch.device("meta"):
        counts = [
            sum(parameter.numel() for parameter in build_encoder(name, options=options).parameters()) / 1e6
            for name, options in (("smit_s", {}), ("smit_p", {"heads": [4, 4, 8, 16]}), ("smit_p", {}))
        ]
    assert counts[:2] == pytest.approx([59.829, 200.836], abs=6e-4)
    # The paper's 586.1 M for the whole network is 585.743 M with heads 4, 4, 8, 16; these add what is missing.
    assert 585.743 + counts[2] - counts[1] == pytest.approx(586.149, abs=6e-4)


def test_presets_have_the_papers_crops_spacings_and_intensities() -> None:
    facts = {name: encoder_spec(name) for name, shape in ENCODERS.items() if isinstance(shape, SwinShape)}
    assert {name: spec.native_crop[0] for name, spec in facts.items()} == {
        "smit_96": 96,
        "smit_128": 128,
        "smit_s": 96,
        "smit_p": 128,
        "smit_repo": 96,
        "swin_unetr": 96,
        "swin_tiny": 64,
    }
    windows = {name: (spec.intensity.low, spec.intensity.high) for name, spec in facts.items()}
    assert windows["smit_96"] == windows["smit_p"] == (-500, 500)
    assert (windows["smit_repo"], windows["swin_unetr"]) == ((-175, 250), (-1000, 1000))
    assert {spec.intensity.encoder_range for spec in facts.values()} == {(0.0, 1.0)}
    assert facts["smit_s"].native_spacing == (1.5, 1.5, 2.0)
    assert facts["smit_repo"].native_spacing == (2.0, 2.0, 2.0)
    assert facts["swin_unetr"].native_spacing is None


def test_turning_volume_and_weights_turns_the_features() -> None:
    """Padded, shifted and merged alike along every axis: (X, Y, Z) -> (Y, Z, X) of all that has axes."""
    encoder, turned = _rule_made(TINY), _build(TINY)
    state = encoder.state_dict()
    slots = MERGE_ORDERS["smit"]
    moved = [slots.index(slot[2] + slot[:2]) for slot in slots]  # slot (y, z, x) holds what was at (x, y, z)
    for name, value in state.items():
        if name == "patch_embed.proj.weight":
            state[name] = value.permute(0, 1, 3, 4, 2)
        elif name.endswith("bias_table"):
            state[name] = value.view(7, 7, 7, -1).permute(1, 2, 0, 3).reshape(value.shape)
        elif ".downsample." in name:
            state[name] = value.unflatten(-1, (8, -1))[..., moved, :].flatten(-2)
    turned.load_state_dict(state)
    volume = torch.randn(1, 1, 64, 96, 32)
    with torch.inference_mode():
        first, second = encoder(volume), turned(volume.permute(0, 1, 3, 4, 2))
    for before, after in zip(first.maps, second.maps, strict=True):
        torch.testing.assert_close(before.permute(0, 1, 3, 4, 2), after, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(first.summary, second.summary, atol=2e-5, rtol=1e-4)


def test_samples_of_a_batch_do_not_mix() -> None:
    encoder = _build(TINY)
    volume = torch.randn(3, 1, 32, 64, 32)
    with torch.inference_mode():
        together, alone = encoder(volume), encoder(volume[1:2])
    for batch, single in zip(together.maps, alone.maps, strict=True):
        torch.testing.assert_close(batch[1:2], single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [TINY, replace(TINY, taps="pre_block", clamp_window=True, patch_norm=False)])
def test_taps_are_what_their_names_say(shape: SwinShape) -> None:
    encoder = _build(shape)
    affine = {
        name: torch.nn.init.normal_(value) for name, value in encoder.named_parameters() if name.startswith("norm")
    }

    def normed(cells: torch.Tensor, stage: int) -> torch.Tensor:
        words = [affine.get(f"norm{stage}.{word}") for word in ("weight", "bias")]
        return torch.nn.functional.layer_norm(cells, cells.shape[-1:], *words)

    volume = torch.randn(1, 1, 32, 32, 64)
    features = encoder(volume)
    cells, merged, mixed = encoder.patch_embed(volume), [], []
    for stage in encoder.layers:
        for block in stage.blocks:  # type: ignore[union-attr]
            cells = block(cells)
        mixed.append(cells)
        cells = stage.downsample(cells)  # type: ignore[operator, union-attr]
        merged.append(cells)
    assert torch.equal(features.tokens["distill"], merged[2].flatten(1, 3))
    torch.testing.assert_close(features.summary, normed(cells, 4).mean((1, 2, 3)))
    patch = features.tokens["patch"]
    torch.testing.assert_close(patch, normed(mixed[3], 3).flatten(1, 3))
    if shape.taps == "post_block":
        expected = [*(normed(out, stage) for stage, out in enumerate(mixed)), cells]
        assert len(affine) == 8
    else:
        expected = [normed(out, 4) for out in (encoder.patch_embed(volume), *merged)]
        assert not affine
    for found, out in zip(features.maps, expected, strict=True):
        torch.testing.assert_close(found, out.movedim(-1, 1))


def test_every_parameter_learns_and_the_norms_of_the_maps_through_maps_alone() -> None:
    encoder = _build(TINY, drop_path=0.2).train()
    mask = torch.zeros(2, 4 * 2 * 2, dtype=torch.bool)
    mask[:, ::3] = True
    for use_maps in (False, True):
        encoder.zero_grad()
        features = encoder(torch.randn(2, 1, 64, 32, 32), mask)
        targets = [features.summary, features.tokens["distill"], *(features.maps if use_maps else [])]
        sum((target * torch.randn_like(target)).sum() for target in targets).backward()
        without = {name for name, value in encoder.named_parameters() if value.grad is None or not value.grad.any()}
        norms = {f"norm{stage}.{kind}" for stage in range(4) for kind in ("weight", "bias")}
        assert without == (set() if use_maps else norms)


def test_a_frozen_encoder_passes_gradients_to_its_input() -> None:
    encoder = _build(TINY).requires_grad_(False)
    volume = torch.randn(1, 1, 32, 32, 32, requires_grad=True)
    encoder(volume).maps[4].square().sum().backward()
    assert volume.grad is not None and (volume.grad != 0).float().mean() > 0.99
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_bfloat16_autocast_stays_close_to_float32(frozen: bool) -> None:
    encoder = _rule_made(MEDIUM).requires_grad_(not frozen)
    volume = torch.randn(1, 1, 64, 32, 64)
    exact = encoder(volume)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse = encoder(volume)
    for found, expected in zip([*coarse.maps, coarse.summary], [*exact.maps, exact.summary], strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() / expected.norm() < 0.03
    if not frozen:
        names = [name for name, _ in encoder.named_parameters() if "bias_table" in name or "qkv" in name]
        parameters = [encoder.get_parameter(name) for name in names]
        pairs = zip(
            *(torch.autograd.grad(each.maps[4].square().mean(), parameters) for each in (coarse, exact)), strict=True
        )
        errors = [((a - b).norm() / b.norm()).item() for a, b in pairs]
        assert max(errors) < 0.1


def test_drop_path_rises_linearly_over_all_blocks() -> None:
    encoder = _build(TINY, drop_path=0.3)
    rates = [block.drop_path for block in encoder.blocks_in_order]
    assert rates == pytest.approx([0.05 * index for index in range(7)])
    shifts = [block.windows.shifted for block in encoder.blocks_in_order]  # type: ignore[union-attr]
    assert shifts == [False, False, True, False, True, False, True]


def test_initialisation_is_pytorchs_but_for_the_bias_tables() -> None:
    state = _build(replace(TINY, width=48, heads=(4, 4, 8, 16))).state_dict()
    assert state["layers.2.blocks.0.attn.relative_position_bias_table"].std().item() == pytest.approx(0.02, rel=0.05)
    bound = 1 / 48**0.5  # uniform within 1 / sqrt(fan in)
    assert 0.95 * bound < state["layers.0.blocks.0.attn.qkv.weight"].abs().max().item() <= bound
    assert not state["mask_token"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge_order": "monai"}, "merge_order 'monai': known are smit, monai_legacy, monai15, v2"),
        ({"window_reverse": "wrong"}, "window_reverse 'wrong': known are correct, legacy"),
        ({"taps": "both"}, "taps 'both': known are post_block, pre_block"),
        ({"depths": [2, 2, 2]}, "one number for each of the 4 stages"),
        ({"window": 0}, "SwinShape with window 0: must be 1 or more"),
        ({"heads": [5, 4, 8, 16]}, "width 24 cannot be split into 5 heads"),
    ],
)
def test_a_convention_that_does_not_exist_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_encoder("swin_tiny", options=options)


def test_masks_and_volumes_that_do_not_fit_are_refused() -> None:
    encoder = _build(TINY)
    volume = torch.zeros(1, 1, 32, 32, 64)
    for mask in (torch.zeros(1, 15, dtype=torch.bool), torch.zeros(1, 16)):
        with pytest.raises(ValueError, match=r"expected bool \(1, 16\), one entry per token of 16 voxels"):
            encoder(volume, mask)
    with pytest.raises(ValueError, match=r"reads volumes \(B, 1, X, Y, Z\)"):
        encoder(volume.expand(1, 2, 32, 32, 64))
    with pytest.raises(ValueError, match=r"nearest is \(32, 32, 64\)"):
        encoder(torch.zeros(1, 1, 32, 40, 64))
    with pytest.raises(ValueError, match="drop_path"):
        _build(TINY, drop_path=1.0)


@pytest.mark.parametrize(
    ("order", "published"),
    [("smit", "04216357"), ("monai_legacy", "04215217"), ("monai15", "04216537"), ("v2", "01234567")],
)
def test_a_merge_takes_its_eight_cells_in_the_published_order(order: str, published: str) -> None:
    merge, seen = PatchMerging(1, order), []
    merge.norm.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0].flatten().tolist()))
    merge(torch.arange(8.0).view(1, 2, 2, 2, 1))  # 4 x + 2 y + z
    assert "".join(f"{cell:g}" for cell in seen) == published


def test_all_merge_orders_but_the_old_one_hold_every_cell_once() -> None:
    cells = {"".join(offsets) for offsets in itertools.product("01", repeat=3)}
    complete = {order for order, slots in MERGE_ORDERS.items() if set(slots) == cells}
    assert complete == MERGE_ORDERS.keys() - {"monai_legacy"}
    assert len(set(MERGE_ORDERS["monai_legacy"])) == 6
