"""The state of every random generator that a program may draw from, as plain tensors and values."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_generators(seed: int) -> None:
    """Start the global generators of torch, numpy and Python from one seed."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2 ** 32)
    random.seed(seed)


def rng_state() -> dict[str, object]:
    """The global generators of torch (the CPU and each GPU), numpy and Python, as weights_only loading reads them."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, words, gauss_next = random.getstate()
    return {"torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
            "python": [version, torch.tensor(words, dtype=torch.int64), gauss_next]}


def set_rng_state(state: dict[str, object]) -> None:
    """Put `rng_state` back; the states of GPUs that are not here are left out."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_initialized():
        for index, own in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(own, index)
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss_next))
