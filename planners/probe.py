"""A few real training steps in a fresh process: how long one takes on this machine, and how much memory it needs."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor, nn

from nnssl.data.collation import collate
from nnssl.encoders import encoder_spec
from nnssl.encoders.base import EncoderSpec
from nnssl.geometry import Triple
from nnssl.networks.precision import has_fast_bf16
from nnssl.networks.segmentor import EncoderSegmentor
from nnssl.planners.network import NetworkPlan
from nnssl.planners.pretrain_memory import assumed_task
from nnssl.pretext import build_task, task_named
from nnssl.recipe import PretrainRecipe

STEPS = 4  # the first one is not timed
PATIENCE_SECONDS = 30.0  # no further step is begun after that
CLIP_NORM = 12.0  # nnU-Net's
KILLED = "was killed, most likely for lack of memory"


@dataclass(frozen=True)
class FinetuneStep:
    """What one step of fine-tuning computes."""

    network: NetworkPlan
    crop: Triple  # voxels
    batch: int


@dataclass(frozen=True)
class PretrainStep:
    """What one step of pretraining computes, with the objective of the encoder's own paper."""

    spec: EncoderSpec
    recipe: PretrainRecipe
    stored_shape: Triple  # voxels of a volume that the views are cut from
    batch: int


@dataclass(frozen=True)
class Measured:
    """One step on one device."""

    batch: int
    passes_seconds: float  # forward and backward of the batch
    update_seconds: float  # optimiser and teachers
    prepare_seconds: float  # views of one sample, in one data process; 0: not measured
    peak_bytes: float  # above the process before it built the network; GPU: allocated by PyTorch


class _Training:
    """Network and optimiser of one step, in the process that measures; `passes` and `update` are timed."""

    def __init__(self, loss: Callable[[], Tensor], trained: Sequence[nn.Parameter], after: Callable[[], None]) -> None:
        self.loss, self.trained, self.after = loss, trained, after
        self.optimiser = torch.optim.AdamW(trained, lr=1e-6)
        self.prepare_seconds = 0.0
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        self.optimiser.step()  # its moments are there in every step but the first

    def passes(self) -> None:
        """Forward and backward."""
        self.optimiser.zero_grad(set_to_none=True)
        self.loss().backward()

    def update(self) -> None:
        """Clip, step, teachers."""
        torch.nn.utils.clip_grad_norm_(self.trained, CLIP_NORM)
        self.optimiser.step()
        self.after()


def measure(step: FinetuneStep | PretrainStep, device: str = "cpu", steps: int = STEPS) -> Measured:
    """Run a few steps on random volumes, in a new process so that its memory is theirs alone.

    Args:
        step: what to compute.
        device: "cpu", "cuda" or "mps" (whose memory is not told).
        steps: at least 1, which is enough for the memory; later ones are timed.

    Raises:
        MemoryError: the process was killed, or the device has too little memory.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measure, step, device, steps, torch.get_num_threads()).result()
        except (torch.OutOfMemoryError, BrokenProcessPool) as error:
            raise MemoryError(f"measuring a training step of batch {step.batch} on {device}: it {KILLED}") from error


def _measure(step: FinetuneStep | PretrainStep, device_name: str, steps: int, threads: int) -> Measured:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    device = torch.device(device_name)
    before = _start_of_peak(device)
    training = _finetuning(step, device) if isinstance(step, FinetuneStep) else _pretraining(step, device)
    begun = time.perf_counter()
    times: list[tuple[float, float]] = []
    while len(times) < steps and (not times or time.perf_counter() - begun < PATIENCE_SECONDS):
        times.append((_seconds(training.passes, device), _seconds(training.update, device)))
    passes, updates = zip(*(times[1:] or times), strict=True)
    return Measured(
        step.batch,
        statistics.median(passes),
        statistics.median(updates),
        training.prepare_seconds,
        _peak(device) - before,
    )


def _finetuning(step: FinetuneStep, device: torch.device) -> _Training:
    """nnU-Net's cross entropy + Dice on a random volume and label map."""
    plan = step.network
    words = plan.arch_kwargs(encoder_spec(plan.encoder.name, step.crop, options=plan.encoder.options))
    network = EncoderSegmentor(plan.input_channels, plan.num_classes, **words).to(device).train()
    volume = torch.rand(step.batch, plan.input_channels, *step.crop, device=device)
    label = torch.randint(plan.num_classes, (step.batch, 1, *step.crop), device=device).float()
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    loss = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return _Training(lambda: loss(network(volume), label), trained, lambda: None)


def _pretraining(step: PretrainStep, device: torch.device) -> _Training:
    """The task of the encoder's own paper on views of random volumes."""
    name, recipe = assumed_task(step.spec), step.recipe
    recipe = replace(recipe, batch_size=step.batch, **task_named(name).RECIPE)
    spec, crop = step.spec, recipe.global_crop
    spec = encoder_spec(spec.name, crop, intensity=spec.intensity, options=spec.options)
    task = build_task(name, spec, recipe).to(device).train()
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(1, *step.stored_shape)
    begun = time.perf_counter()
    samples = [task.prepare(volume, generator) for _ in range(step.batch)]
    prepare_seconds = (time.perf_counter() - begun) / step.batch
    collated = collate(samples)
    del volume, samples
    lowered = torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type))

    def loss() -> Tensor:
        batch = {name: value.to(device, copy=True) for name, value in collated.items()}  # augmenting uses it up
        ready = task.augment(batch, torch.Generator(device).manual_seed(0))
        task.begin_step(0, recipe.steps)
        with lowered:
            return task(ready)["loss"]

    unique = {id(one): one for part in task.trained_parts().values() for one in part.parameters() if one.requires_grad}
    training = _Training(loss, list(unique.values()), lambda: task.after_step(0, recipe.steps))
    training.prepare_seconds = prepare_seconds
    return training


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _start_of_peak(device: torch.device) -> float:
    """Bytes in use now; the peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    if _STATUS.is_file():
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the earlier peak
    return _peak(device)


def _peak(device: torch.device) -> float:
    """Most bytes in use since `_start_of_peak`."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if not _STATUS.is_file():
        return _most_resident()
    line: Any = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) * 1024


_STATUS = Path("/proc/self/status")  # Linux


def _most_resident() -> float:
    """Elsewhere: most of the process so far, 0 where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
