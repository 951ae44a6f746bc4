"""ViT-L/14 and ViT-L/14@336px: 24 layers in stages, sizes from the checkpoint, and a step of the full-size tower."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from clip.model import CLIP, build_model
from trainers.build import count_parameters, images_per_step, training_settings
from trainers.LaFTer import LaFTer
from trainers.LaFTer_multilayer import MultiLayerLaFTer
from utils.config import load_config
from utils.utils import setup_lafter_training_utils

STAGES = [list(range(0, 8)), list(range(8, 16)), list(range(16, 22)), [22, 23]]
LAYERNORMS = (2 * 24 + 2) * 2 * 1024
TOTALS = {224: 427_616_513, 336: 427_944_193}  # parameters of OpenAI's ViT-L/14 and ViT-L/14@336px


def cheap_state(resolution: int) -> dict[str, torch.Tensor]:
    """A full-size image tower in OpenAI's names. Drawing 300 M random numbers takes seconds: one small draw is tiled
    instead, which is as good for shapes, gradients and finite numbers."""
    with torch.device("meta"):
        model = CLIP(768, resolution, 24, 1024, 14, 0, 49_408, 768, 12, 12)
    draw = torch.randn(4093, generator=torch.Generator().manual_seed(0)) * 0.02  # a prime: no row equals the next
    state = {}
    for name, tensor in model.state_dict().items():
        values = draw.repeat(-(-tensor.numel() // len(draw)))[: tensor.numel()].view(tensor.shape)
        is_norm = name.endswith(("ln_1.weight", "ln_2.weight", "_pre.weight", "_post.weight"))
        state[name] = 1 + values if is_norm else values
    return state


@pytest.mark.parametrize("resolution, tokens", [(224, 257), (336, 577)])
def test_the_sizes_come_from_the_checkpoint(resolution, tokens):
    with torch.device("meta"):
        reference = CLIP(768, resolution, 24, 1024, 14, 77, 49_408, 768, 12, 12)
        state = {name: torch.empty_like(tensor) for name, tensor in reference.state_dict().items()}
    model = build_model(state)
    visual = model.visual
    assert sum(parameter.numel() for parameter in model.parameters()) == TOTALS[resolution]
    assert (visual.input_resolution, visual.patch_size, visual.output_dim) == (resolution, 14, 768)
    assert (len(visual.transformer.resblocks), visual.class_embedding.numel(), model.embed_dim) == (24, 1024, 768)
    assert len(visual.positional_embedding) == tokens
    assert visual.transformer.resblocks[0].attn.heads == 16
    assert visual.transformer.stage_boundaries == STAGES


@pytest.mark.parametrize("resolution", [224, 336])
def test_the_staged_prompts_are_65536_parameters(make_cfg, resolution):
    with torch.device("meta"):
        clip_model = CLIP(768, resolution, 24, 1024, 14, 77, 49_408, 768, 12, 12)
    model = MultiLayerLaFTer(clip_model, None, 10, make_cfg())
    assert [tuple(prompt.shape) for prompt in model.multi_prompts] == [(1, 16, 1024)] * 4
    assert count_parameters(model) == {"prompts": 65_536, "fusion": 8, "adapter": 10 * 768, "layernorm": LAYERNORMS,
                                       "total": TOTALS[resolution] + 65_544 + 10 * 768}
    shallow = LaFTer(clip_model, None, 10, make_cfg({}, "LaFTer"))
    assert count_parameters(shallow)["prompts"] == 50 * 1024


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
@pytest.mark.parametrize("backbone, at_a_time", [("ViT-L/14", 25), ("ViT-L/14@336px", 10), ("ViT-B/32", 0)])
def test_the_configurations_keep_the_published_step_of_50_images(trainer, backbone, at_a_time):
    cfg = load_config("emotion6", flags={"TRAINER.NAME": trainer, "MODEL.BACKBONE.NAME": backbone})
    assert images_per_step(cfg) == 50 and at_a_time == cfg.DATALOADER.TRAIN_X.MICRO_BATCH


def take_step(cfg, state: dict[str, torch.Tensor], resolution: int) -> tuple[dict, list, list]:
    """One image of random pixels: (gradients by name, the prompts before a step, and after it)."""
    clip_model = build_model(state).requires_grad_(False)
    model = MultiLayerLaFTer(clip_model, torch.randn(8, 768) * 0.1, 8, cfg)
    optimizer, _, _ = setup_lafter_training_utils(training_settings(cfg), model)
    lengths = []
    clip_model.visual.transformer.resblocks[23].register_forward_hook(lambda _, args, __: lengths.append(args[0].shape))
    prediction = model(torch.randn(1, 3, resolution, resolution))
    grid, prompts = resolution // 14, 16 * (4 if cfg.MULTI_LAYER_PROMPT.MODE == "append" else 1)
    assert lengths == [(1, 1 + grid ** 2 + prompts, 1024)]
    assert prediction.logits.shape == (1, 8) and prediction.stage_features.shape == (4, 1, 768)
    F.cross_entropy(prediction.logits, torch.tensor([3])).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(gradients) == set(model.parameter_kinds()) and all(grad is not None for grad in gradients.values())
    before = [prompt.detach().clone() for prompt in model.multi_prompts]
    optimizer.step()
    return gradients, before, list(model.multi_prompts)


def test_a_step_of_the_full_size_tower(make_cfg):
    """Every declared parameter gets a finite gradient, and a step changes the prompts."""
    cfg = make_cfg({"MULTI_LAYER_PROMPT.MODE": "append", "OPTIM.LR_SCHEDULER": "none"})
    gradients, before, after = take_step(cfg, cheap_state(224), 224)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(not torch.equal(prompt, old) for prompt, old in zip(after, before))


def test_a_step_at_336_px(make_cfg):
    """Of the shapes alone: the numbers take ten seconds."""
    cfg = make_cfg({"MULTI_LAYER_PROMPT.MODE": "replace", "OPTIM.LR_SCHEDULER": "none"})
    with torch.device("meta"):
        state = {name: torch.empty_like(tensor) for name, tensor in CLIP(768, 336, 24, 1024, 14, 0, 49_408, 768, 12,
                                                                         12).state_dict().items()}
        take_step(cfg, state, 336)
