"""Shared by the tests of the model side: a tiny random CLIP and a checked configuration."""

from __future__ import annotations

import pytest
import torch

from clip.model import CLIP
from clip.transformer import LayerNorm
from utils.config import load_config

VOCABULARY_SIZE = 49_408


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tests' tensors are tiny: several threads would only wait for one another, for minutes on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def make_clip():
    """make_clip(layers, …) → a random CLIP of 32 px, patch 8, embed_dim 32, in evaluation mode and frozen, as
    LaFTer.py loads it. LayerNorms and biases are random too, so that no test passes because they are neutral."""

    def make(layers: int = 12, width: int = 64, text_layers: int = 0, stages=None, quick_gelu: bool = True,
             seed: int = 0) -> CLIP:
        torch.manual_seed(seed)
        model = CLIP(embed_dim=32, image_resolution=32, vision_layers=layers, vision_width=width, vision_patch_size=8,
                     context_length=77 if text_layers else 0, vocab_size=VOCABULARY_SIZE, transformer_width=64,
                     transformer_heads=1, transformer_layers=text_layers, stage_boundaries=stages,
                     quick_gelu=quick_gelu)
        return randomise(model).eval().requires_grad_(False)

    return make


@torch.no_grad()
def randomise(model):
    """Take LayerNorms from their neutral start and attention's biases from 0, in place."""
    for module in model.modules():
        if isinstance(module, (torch.nn.LayerNorm, LayerNorm)):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
    for name, parameter in model.named_parameters():
        if name.endswith(("in_proj_bias", "out_proj.bias")):
            parameter.uniform_(-0.1, 0.1)
    return model


@pytest.fixture(scope="session")
def make_cfg():
    """make_cfg({"KEY": value, …}, trainer=…) → the frozen configuration that the command line would give."""

    def make(values: dict[str, object] | None = None, trainer: str = "MultiLayerLaFTer"):
        return load_config(flags={"DATASET.NAME": "folder", "TRAINER.NAME": trainer, "DATALOADER.CACHE_GB": 0,
                                  **(values or {})})

    return make


@pytest.fixture
def images() -> torch.Tensor:
    """Eight normalised images [8, 3, 32, 32]."""
    return torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(7))
