"""ResEnc-L (Isensee et al. 2024, arXiv:2404.09556): nnU-Net's residual encoder, a pyramid of six stages."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from nnssl.encoders.base import Encoder, EncoderSpec, Features, IntensityRange, check_crop, check_line, check_volume
from nnssl.encoders.foreign import part, z_score_intensity
from nnssl.layers.position import full_precision


@dataclass(frozen=True)
class ResEncShape:
    """Size of a residual encoder."""

    widths: tuple[int, ...] = (32, 64, 128, 256, 320, 320)  # channels per stage; the first has full resolution
    depths: tuple[int, ...] = (1, 3, 4, 6, 6, 6)  # residual blocks per stage
    native_side: int = 160  # voxels per side of the default native crop (OpenMind)
    input_channels: int = 1  # image channels that enter together

    def __post_init__(self) -> None:
        check_line(self)
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"ResEnc of widths {list(self.widths)} and depths {list(self.depths)}: give as many of both"
            )

    def spec(
        self, name: str, native_crop: tuple[int, int, int] | None, intensity: IntensityRange | None
    ) -> EncoderSpec:
        """Facts about the encoder; no parameter depends on the native crop."""
        strides = tuple(2**stage for stage in range(len(self.widths)))
        spec = EncoderSpec(
            name,
            self.widths,
            strides,
            strides[-1],
            native_crop or (self.native_side,) * 3,
            native_spacing=(1.0, 1.0, 1.0),
            intensity=intensity or z_score_intensity(),
            family="resenc",
            depth=sum(self.depths),
            input_channels=self.input_channels,
            maskable=False,
        )
        check_crop(spec, spec.native_crop)
        return spec

    def build(self, spec: EncoderSpec, drop_path: float) -> "ResEnc":
        """A freshly initialised encoder; needs dynamic-network-architectures."""
        return ResEnc(spec, self, drop_path=drop_path)


class ResEnc(Encoder):
    """Stem and stages with the parameter names of dynamic-network-architectures.

    That package registers every convolution and norm twice (`conv` and `all_modules.0`); here each has one name, the
    first, so that the parameters can be saved as safetensors.

    Args:
        spec: facts, from `shape.spec`.
        shape: size.
        drop_path: stochastic depth rate of all blocks, in [0, 1).
    """

    def __init__(self, spec: EncoderSpec, shape: ResEncShape, *, drop_path: float = 0.0) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"building {spec.name!r}: drop_path {drop_path} must lie in [0, 1)")
        self.spec = spec
        built = part("building_blocks.residual_encoders", "ResidualEncoder")(
            shape.input_channels,
            len(shape.widths),
            shape.widths,
            nn.Conv3d,
            3,
            [1] + [2] * (len(shape.widths) - 1),
            shape.depths,
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            stochastic_depth_p=drop_path,
        )
        built.apply(part("initialization.weight_init", "InitWeights_He")(1e-2))
        built.apply(part("initialization.weight_init", "init_last_bn_before_add_to_0"))
        self.stem, self.stages = built.stem, built.stages
        for block in [module for module in self.modules() if hasattr(module, "all_modules")]:
            _register_once(block)

    @property
    def blocks_in_order(self) -> list[nn.Module]:
        """The residual blocks in the order of the data."""
        return [block for stage in self.stages for block in stage.blocks]  # type: ignore[union-attr]

    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        """Encode volumes; one map per stage at strides 1, 2, 4, ... ; tokens are the cells of the last."""
        check_volume(self.spec, volume)
        if token_mask is not None:
            raise ValueError(f"encoder {self.spec.name!r} is a convolutional network: its tokens cannot be hidden")
        current, maps = self.stem(volume), []
        for stage in self.stages:
            current = _run(stage, current)
            maps.append(current)
        cells = current.flatten(2).transpose(1, 2)
        tokens = functional.layer_norm(cells, cells.shape[-1:])
        return Features(maps=maps, summary=tokens.mean(1), tokens={"patch": tokens, "distill": tokens})


def _run(stage: nn.Module, cells: Tensor) -> Tensor:
    """A stage, in float32 where bfloat16 weight gradients on CPU are broken: see `Conv3x3x3`."""
    if cells.device.type != "cpu" or cells.shape[2] > 4:  # stride 2 turns 4 cells along X into 2
        return stage(cells)
    with full_precision(cells.device):
        return stage(cells.float())


def _register_once(block: nn.Module) -> None:
    """Keep the chain that the block calls, but not as a submodule: its parts are submodules already."""
    block.__dict__["all_modules"] = block._modules.pop("all_modules")
