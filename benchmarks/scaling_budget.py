"""What pretraining on 100,000 volumes asks of storage, cores and network, calculated from measured numbers.

Measured here and given as flags: samples per second of one core (`loader_ranks.py` for views alone, `crops.py` with
intensity), MB stored and MB read per sample (`loader_ranks.py`), samples per second of one GPU. Calculated: everything
else. The gradients of a ring all-reduce pass each GPU 2 (n - 1) / n times, in float32; parameters are counted in the
task that `nnssl_pretrain` builds.

    python benchmarks/scaling_budget.py --core_samples 40 --stored_mb 3.23 --read_mb 3.24
"""

import argparse
from collections.abc import Callable

import torch

from nnssl.encoders import encoder_spec
from nnssl.pretext import build_task
from nnssl.recipe import PretrainRecipe

GLOBAL, LOCAL = (96, 96, 96), (48, 48, 48)
FLOAT_BYTES, MOMENTS = 4, 2  # AdamW's


def main() -> None:
    """Print the calculation as a table in Markdown, one column per number of GPUs."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--core_samples", type=float, required=True, help="measured: samples/s of one core")
    words.add_argument("--stored_mb", type=float, required=True, help="measured: MB stored per volume")
    words.add_argument("--read_mb", type=float, required=True, help="measured: MB read per sample")
    words.add_argument("--cache_mb", type=float, default=33.0, help="of a float32 volume; default 192 x 224 x 192")
    words.add_argument("--gpu_samples", type=float, default=341 / 4, help="samples/s of one GPU; default 4 A100: 341")
    words.add_argument("--volumes", type=int, default=100_000)
    words.add_argument("--encoder", default="vit_large_16")
    words.add_argument("--batch", type=int, default=512, help="of all GPUs")
    words.add_argument("--steps", type=int, default=125_000)
    words.add_argument("--save_every", type=int, default=500, help="steps between checkpoints")
    words.add_argument("--gpus", type=int, nargs="+", default=[4, 32, 256])
    print(table(words.parse_args()))


def table(given: argparse.Namespace) -> str:
    """Rows per GPU, of all GPUs, and of the run."""
    trained, kept = parameters(given.encoder)
    gradients_gb = trained * FLOAT_BYTES / 1e9
    checkpoint_gb = (kept + MOMENTS * trained) * FLOAT_BYTES / 1e9
    rows: dict[str, Callable[[int], float]] = {
        "samples/s": lambda gpus: gpus * given.gpu_samples,
        "read, MB/s": lambda gpus: gpus * given.gpu_samples * given.read_mb,
        "the same of a float32 cache, MB/s": lambda gpus: gpus * given.gpu_samples * given.cache_mb,
        "cores in all": lambda gpus: gpus * given.gpu_samples / given.core_samples,
        "cores per GPU": lambda _: given.gpu_samples / given.core_samples,
        "samples per GPU and step": lambda gpus: given.batch / gpus,
        "step, ms": lambda gpus: 1e3 * given.batch / gpus / given.gpu_samples,
        "gradients that each GPU sends and receives per step, GB": lambda gpus: 2 * (gpus - 1) / gpus * gradients_gb,
        "the same, GB/s": lambda gpus: 2 * (gpus - 1) / gpus * gradients_gb * gpus * given.gpu_samples / given.batch,
        "checkpoints, MB/s": lambda gpus: (
            1e3 * checkpoint_gb * gpus * given.gpu_samples / given.batch / given.save_every
        ),
        "hours of the run": lambda gpus: given.steps * given.batch / gpus / given.gpu_samples / 3600,
    }
    head = f"| {given.encoder}, batch {given.batch} | " + " | ".join(f"{gpus} GPUs" for gpus in given.gpus) + " |"
    lines = [f"| {name} | {' | '.join(figure(row(gpus)) for gpus in given.gpus)} |" for name, row in rows.items()]
    stored, cached = (given.volumes * mb / 1e6 for mb in (given.stored_mb, given.cache_mb))
    epochs = given.steps * given.batch / given.volumes
    facts = (
        f"{given.volumes:,} volumes: {stored:.2f} TB stored ({cached:.2f} TB as float32), {epochs:.0f} epochs. "
        f"{trained / 1e6:.1f} M trained parameters, checkpoint {checkpoint_gb:.2f} GB."
    )
    return "\n".join([head, "|---" * (len(given.gpus) + 1) + "|", *lines, "", facts])


def figure(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def parameters(encoder: str) -> tuple[int, int]:
    """How many numbers are trained, and how many a checkpoint keeps besides the optimiser's (with the teacher)."""
    with torch.device("meta"):
        task = build_task("threedino", encoder_spec(encoder, GLOBAL), PretrainRecipe(GLOBAL, LOCAL), [])
    trained = sum(parameter.numel() for parameter in task.student.parameters() if parameter.requires_grad)
    return trained, sum(value.numel() for value in task.state_dict().values())


if __name__ == "__main__":
    main()
