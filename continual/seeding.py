"""Every generator of a run has a seed of its own, derived from the run's seed and the generator's name."""

import hashlib

import numpy as np
import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed from ``SeedSequence([seed, hash(names)])``: equal names agree, others do not correlate."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    sequence = np.random.SeedSequence([seed, int.from_bytes(digest, "little")])
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A torch generator on the CPU that nobody else draws from, e.g. ``generator(seed, "er", "memory")``."""
    return torch.Generator().manual_seed(derive(seed, *names))
