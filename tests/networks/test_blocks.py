"""The decoders' blocks against MONAI's UNETR blocks and PyTorch's normalisations."""

import pytest
import torch
from torch import nn

from nnssl.networks.blocks import NORMS, InstanceNorm, ResidualBlock, UpBlock, build_norm, instance_norm
from nnssl.networks.unetr import Ladder

blocks = pytest.importorskip("monai.networks.blocks")
MONAI_NORMS = {"instance": "instance", "batch": "batch", "instance_affine": ("instance", {"affine": True})}


def _copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy parameters by shape and order (the names differ), after making norms that are no identity."""
    theirs = list(target.parameters())
    for parameter in source.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
        match = next(index for index, other in enumerate(theirs) if other.shape == parameter.shape)
        theirs.pop(match).data.copy_(parameter.data)
    assert not theirs


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("inputs", "outputs"), [(5, 8), (8, 8)])
def test_residual_block_agrees_with_monai(norm: str, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    ours = ResidualBlock(inputs, outputs, norm)
    theirs = blocks.UnetrBasicBlock(3, inputs, outputs, 3, 1, MONAI_NORMS[norm], res_block=True)
    _copy_in_order(ours, theirs)
    volume = torch.randn(2, inputs, 4, 6, 5)
    torch.testing.assert_close(ours(volume), theirs(volume), rtol=1e-4, atol=1e-4)


def test_up_block_agrees_with_monai() -> None:
    torch.manual_seed(0)
    ours = UpBlock(8, 4)
    theirs = blocks.UnetrUpBlock(3, 8, 4, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True)
    _copy_in_order(ours, theirs)
    coarse, skip = torch.randn(2, 8, 2, 3, 2), torch.randn(2, 4, 4, 6, 4)
    torch.testing.assert_close(ours(coarse, skip), theirs(coarse, skip), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_ladder_agrees_with_monai(steps: int) -> None:
    torch.manual_seed(0)
    ours = Ladder(6, 4, steps)
    theirs = blocks.UnetrPrUpBlock(3, 6, 4, steps, 3, 1, 2, "instance", conv_block=True, res_block=True)
    _copy_in_order(ours, theirs)
    coarse = torch.randn(2, 6, 2, 1, 3)
    torch.testing.assert_close(ours(coarse), theirs(coarse), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_agrees_with_pytorch_and_keeps_the_layout(layout: torch.memory_format, affine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.randn(3, 4, 5, 6, 7, generator=generator).contiguous(memory_format=layout)
    scale = (torch.randn(4, generator=generator), torch.randn(4, generator=generator)) if affine else (None, None)
    normed = instance_norm(volume, *scale)
    expected = nn.functional.instance_norm(volume, weight=scale[0], bias=scale[1])
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-5)
    assert normed.is_contiguous(memory_format=layout)


def test_instance_norm_of_one_voxel_is_the_shift() -> None:
    norm = InstanceNorm(3, affine=True)
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(torch.rand(2, 3, 1, 1, 1))[:, :, 0, 0, 0], norm.bias.expand(2, 3))
    assert not InstanceNorm(3, affine=False)(torch.rand(2, 3, 1, 1, 1)).any()


@pytest.mark.parametrize(("norm", "parameters"), [("instance", 0), ("instance_affine", 10), ("batch", 10)])
def test_only_affine_norms_have_parameters(norm: str, parameters: int) -> None:
    assert sum(parameter.numel() for parameter in build_norm(norm, 5).parameters()) == parameters


def test_an_unknown_norm_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="norm 'group' is unknown; known norms: instance, batch, instance_affine"):
        build_norm("group", 4)
