"""3DINO written plainly: one forward pass per view, logits of all tokens, AdamW and teacher in loops, MONAI per view.

It has the arithmetic of `nnssl.pretext.threedino` (same encoder, float32 prototypes, Sinkhorn-Knopp, losses), so that
both give the same numbers; what it leaves out is the order of work.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import torch
from crops import orientation
from monai import transforms
from own_step import RECIPE, Clock, threedino
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from nnssl.data.lazy_volume import open_stored
from nnssl.data.seeds import generator_at
from nnssl.data.volumes import stored_cases
from nnssl.encoders.base import Encoder
from nnssl.losses.schedules import cosine, linear_warmup
from nnssl.pretext.threedino import ThreeDinoConfig
from nnssl.recipe import PretrainRecipe
from nnssl.trainers.optimiser import build_optimiser, rates_at, set_rates
from nnssl.transforms.masking import stratified_masks
from nnssl.transforms.views import CropRule, random_box

Views = dict[str, list[Tensor]]  # "global", "local": (B, 1, X, Y, Z) each, in [-1, 1]; "mask": (B, N) per global view
Enter = Callable[[str], None]  # told which part begins


class PlainHead(nn.Module):
    """Tokens -> logits over prototypes."""

    def __init__(self, width: int, config: ThreeDinoConfig) -> None:
        super().__init__()
        hidden, bottleneck = config.hidden, config.bottleneck
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.last_layer = weight_norm(nn.Linear(bottleneck, config.prototypes, bias=False))

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> (..., prototypes)."""
        bottleneck = self.mlp(tokens)
        with torch.autocast("cpu", enabled=False):
            return self.last_layer(F.normalize(bottleneck.float(), dim=-1))


class PlainThreeDino(nn.Module):
    """Student and teacher, and the loss of a batch of views."""

    def __init__(self, encoder: Encoder, config: ThreeDinoConfig, recipe: PretrainRecipe, enter: Enter) -> None:
        super().__init__()
        width = encoder.spec.channels[-1]
        heads = {name: PlainHead(width, config) for name in ("dino_head", "ibot_head")}
        self.student = nn.ModuleDict({"encoder": encoder, **heads})
        self.teacher = deepcopy(self.student).requires_grad_(False).eval()
        self.config, self.recipe, self.enter = config, recipe, enter
        groups = build_optimiser(dict(self.student.items()), recipe).param_groups
        own = [{key: group[key] for key in ("params", "lr_multiplier", "weight_decay_multiplier", "last_layer")}
               for group in groups]  # fmt: skip
        self.optimiser = torch.optim.AdamW(own, betas=(0.9, 0.999), eps=1e-8, foreach=False, fused=False)

    def load(self, state: dict[str, Tensor]) -> None:
        """Start from the weights of `ThreeDino.state_dict()`."""
        renamed = {}
        for name, value in state.items():
            name = name.replace("teacher.parts.", "teacher.").replace("weight_g", "parametrizations.weight.original0")
            renamed[name.replace("weight_v", "parametrizations.weight.original1")] = value
        self.load_state_dict({name: value for name, value in renamed.items() if not name.endswith("_centre")})

    def learn(self, step: int, views: Views) -> float:
        """One step; returns the loss."""
        recipe = self.recipe
        set_rates(self.optimiser, rates_at(step, recipe))
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            warmup = round(self.config.teacher_warmup * recipe.steps)
            loss = self.loss(views, linear_warmup(step, warmup, *self.config.teacher_temperature))
        self.enter("backward")
        loss.backward()
        self.enter("optimiser")
        for part in self.student.values():
            nn.utils.clip_grad_norm_(part.parameters(), recipe.clip_norm)
        self.optimiser.step()
        self.enter("EMA")
        momentum = cosine(step, recipe.steps, *self.config.momentum)
        with torch.no_grad():
            for mine, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                mine.mul_(momentum).add_(other, alpha=1 - momentum)
        self.enter("rest")
        return loss.item()

    def loss(self, views: Views, temperature: float) -> Tensor:
        """DINO + iBOT + 0.1 KoLeo."""
        masks, config = views["mask"], self.config
        class_targets, patch_targets = self.targets(views["global"], masks, temperature)
        tokens = [self.run("student", view, mask) for view, mask in zip(views["global"], masks, strict=True)]
        tokens += [self.run("student", view, None) for view in views["local"]]
        self.enter("heads")
        class_logits = [self.student["dino_head"](summary) for summary, _ in tokens]
        patch_logits = [self.student["ibot_head"](patches) for _, patches in tokens[:2]]
        self.enter("losses")
        pairs = [
            cross_entropy(target, logits, config.student_temperature).mean()
            for i, target in enumerate(class_targets)
            for j, logits in enumerate(class_logits)
            if i != j
        ]
        dino = torch.stack(pairs).mean()
        ibot = torch.zeros(())
        for targets, logits, mask in zip(patch_targets, patch_logits, masks, strict=True):
            entropies = cross_entropy(targets, logits[mask], config.student_temperature)
            weights = (1 / mask.sum(1, keepdim=True).clamp(min=1)).expand_as(mask)[mask]
            ibot = ibot + (entropies * weights).sum() / sum(len(one) for one in masks)
        koleo = sum(koleo_loss(summary) for summary, _ in tokens[:2])
        return dino + ibot + config.koleo_weight * koleo

    @torch.no_grad()
    def targets(self, views: list[Tensor], masks: list[Tensor], temperature: float) -> tuple[tuple[Tensor, ...], ...]:
        """Of each view: targets (B, K) of the class tokens and (M, K) of the hidden patch tokens."""
        tokens = [self.run("teacher", view, None) for view in views]
        self.enter("heads")
        class_logits = torch.cat([self.teacher["dino_head"](summary) for summary, _ in tokens])
        patch_logits = [self.teacher["ibot_head"](patches) for _, patches in tokens]
        self.enter("losses")
        hidden = [logits[mask] for logits, mask in zip(patch_logits, masks, strict=True)]
        patch_targets = sinkhorn(torch.cat(hidden), temperature).split([len(one) for one in hidden])
        return sinkhorn(class_logits, temperature).chunk(2), patch_targets

    def run(self, who: str, view: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Class token and patch tokens of one view."""
        self.enter(who)
        features = getattr(self, who)["encoder"](view, mask)
        return features.summary, features.tokens["patch"]


def sinkhorn(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Targets (rows, K) with equally used prototypes, as in the published code: no guard against overflow."""
    q = torch.exp(logits.float() / temperature).t()
    prototypes, rows = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= rows
    return (q * rows).t()


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Per row."""
    return -torch.sum(targets * F.log_softmax(logits.float() / temperature, dim=-1), dim=-1)


def koleo_loss(features: Tensor) -> Tensor:
    """Mean -log distance to the nearest other row."""
    with torch.autocast("cpu", enabled=False):
        unit = F.normalize(features.float(), eps=1e-8, dim=-1)
        nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
        return -torch.log(F.pairwise_distance(unit, unit[nearest], eps=1e-8) + 1e-8).mean()


def plain_views(folder: Path, recipe: PretrainRecipe, config: ThreeDinoConfig, tokens: int) -> Iterator[Views]:
    """Batches as a plain data worker makes them: read a whole volume, then each view alone, with MONAI's transforms."""
    paths, chains = [folder / f"{case}.b2nd" for case in stored_cases(folder)], intensity_chains()
    wide, narrow = CropRule(config.global_area, config.global_depth), CropRule(config.local_area, config.local_depth)
    families = [(wide, recipe.global_crop, chain) for chain in chains[:2]]
    families += [(narrow, recipe.local_crop, chains[2])] * config.local_views
    resize = {size: transforms.Resize(size, mode="trilinear") for size in (recipe.global_crop, recipe.local_crop)}
    number = 0
    while True:
        samples = []
        for _ in range(recipe.batch_size):
            generator = generator_at(0, 1, number)
            volume = torch.from_numpy(open_stored(paths[number % len(paths)])[:]).float()
            x, y, z = volume.shape[1:]
            crops = []
            for rule, size, chain in families:
                box = random_box((x, y, z), rule, size=size, depth_axis=config.depth_axis, generator=generator)
                crops.append(chain(resize[size](volume[(slice(None), *box)])).clamp(0, 1) * 2 - 1)
            samples.append(crops)
            number += 1
        stacks = [torch.stack(list(view)) for view in zip(*samples, strict=True)]
        masks = stratified_masks(2 * recipe.batch_size, tokens, generator)
        yield {"global": stacks[:2], "local": stacks[2:], "mask": list(masks.chunk(2))}


def intensity_chains() -> list[transforms.Compose]:
    """The published augmentation of the first and second global view and of a local one."""
    one_of_three = [
        transforms.RandAdjustContrast(prob=0.8, gamma=(0.5, 2.0)),
        transforms.RandGaussianNoise(prob=0.8, std=0.002),
        transforms.RandHistogramShift(prob=0.8, num_control_points=10),
    ]
    always = [*orientation(), transforms.OneOf(one_of_three)]
    blurred = [transforms.RandGaussianSmooth(prob=1.0), transforms.RandGaussianSharpen(prob=1.0)]
    rarely = [transforms.RandGaussianSmooth(prob=0.1), transforms.RandGaussianSharpen(prob=0.1)]
    return [
        transforms.Compose([*always, transforms.OneOf(blurred)]),
        transforms.Compose([*always, transforms.OneOf(rarely), transforms.RandGibbsNoise(prob=0.2)]),
        transforms.Compose([*always, transforms.RandGaussianSmooth(prob=0.5)]),
    ]


class Side:
    """Data and step, with the initial weights of our side."""

    def __init__(self, work: Path) -> None:
        self.clock, task = Clock(), threedino()
        self.model = PlainThreeDino(task.new_encoder(), task.config, RECIPE, self.clock.enter)
        self.model.load(task.state_dict())
        self.stream = plain_views(work, RECIPE, task.config, task.tokens)

    def step(self, number: int) -> float:
        """Data, then the step."""
        self.clock.enter("data")
        views = next(self.stream)
        self.clock.enter("rest")
        return self.model.learn(number, views)

    def fed(self, number: int, batch: dict[str, Tensor]) -> float:
        """The step with an augmented batch."""
        views: Views = {name: list(stack.split(RECIPE.batch_size)) for name, stack in batch.items()}
        return self.model.learn(number, views)
