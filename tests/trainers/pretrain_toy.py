"""A real pretext task that is small enough for tests: an encoder and a head guess the mean of a noisy crop."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnssl.encoders.base import Encoder, EncoderSpec, Features
from nnssl.pretext.base import PretextTask
from nnssl.recipe import PretrainRecipe

SIDE, PATCH, DIM = 8, 4, 6


@dataclass(frozen=True)
class ToyConfig:
    """Settings."""

    noise: float = 0.1
    momentum: float = 0.9


class ToyEncoder(Encoder):
    """Patches, two blocks with dropout (which draws from the global generator), a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = EncoderSpec("toy", (DIM,), (PATCH,), PATCH, (SIDE, SIDE, SIDE))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.patch_embed = nn.Conv3d(1, DIM, PATCH, PATCH)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.2)) for _ in range(2))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, volume: Tensor, token_mask: Tensor | None = None) -> Features:
        tokens = self.patch_embed(volume).flatten(2).transpose(1, 2) + self.cls_token
        for block in self.blocks:
            tokens = tokens + block(tokens)
        tokens = self.norm(tokens)
        grid = [side // PATCH for side in volume.shape[2:]]
        return Features([tokens.transpose(1, 2).unflatten(2, grid)], tokens.mean(1), {})


class ToyTask(PretextTask):
    """The teacher is a moving average of the encoder and is what is kept.

    `poison`: the loss of this step is NaN; features look collapsed from step `dies` to before step `lives`.
    """

    Config = ToyConfig
    SOURCE = "made up for tests"

    def __init__(self, config: ToyConfig | None = None, **when: int) -> None:
        encoder = ToyEncoder()
        super().__init__(encoder.spec, PretrainRecipe(global_crop=(SIDE,) * 3), config)
        self.student = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(DIM, 1)})
        self.teacher = ToyEncoder().requires_grad_(False)
        self.teacher.load_state_dict(self.encoder.state_dict())
        self.poison_at, self.dies_at, self.lives_at = (when.get(key, 10**6) for key in ("poison", "dies", "lives"))
        self.step = 0

    def prepare(self, volume: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        corner = [int(torch.randint(side - SIDE + 1, (1,), generator=generator)) for side in volume.shape[1:]]
        x, y, z = corner
        return {"crop": volume[:, x : x + SIDE, y : y + SIDE, z : z + SIDE].clone()}

    def augment(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        crop = batch["crop"]
        noise = torch.randn(crop.shape, generator=generator, device=crop.device)
        return {"noisy": crop + self.config.noise * noise, "mean": crop.mean((1, 2, 3, 4))}

    def begin_step(self, step: int, total: int) -> None:
        self.step = step

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        guess = self.student["head"](self.encoder(batch["noisy"]).summary)[:, 0].float()
        error = ((guess - batch["mean"]) ** 2).mean()
        if self.step == self.poison_at:
            error = error * float("nan")
        dead = self.dies_at <= self.step < self.lives_at
        return {"loss": error, "half": error.detach() / 2, "feature_std": torch.tensor(0.0 if dead else 1.0)}

    def after_step(self, step: int, total: int) -> None:
        with torch.no_grad():
            for kept, moving in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
                kept.lerp_(moving, 1 - self.config.momentum)

    def result(self) -> Encoder:
        return self.teacher
