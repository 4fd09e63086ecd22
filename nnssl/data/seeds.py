"""Random generators that depend on a seed and a position only, never on the order of work."""

import numpy as np
import torch


def derived_seed(*parts: int) -> int:
    """One 63-bit seed from several non-negative integers, such as (run seed, sample number)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_at(*parts: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one position, for example of one sample or of one training step."""
    return torch.Generator(device=device).manual_seed(derived_seed(*parts))
