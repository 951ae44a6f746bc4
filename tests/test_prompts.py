"""Where prompts start: U(±√(6 / (3·patch² + width))), or prototypes of the patch tokens of a few images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.build import build_student, sample_images
from trainers.LaFTer import token_prompts, uniform_prompts
from utils.data.items import Item
from utils.data.loader import build_loader
from utils.data.views import build_views


@pytest.fixture
def loader(tmp_path):
    """Weak views of twelve unlabelled images."""
    rng = np.random.default_rng(0)
    items = []
    for index in range(12):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        items.append(Item(path, -1, ""))
    weak, _ = build_views(32, [], (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return build_loader(items, {"weak": weak}, 5, 0)


def quantisation_error(tokens: torch.Tensor, prototypes: torch.Tensor) -> float:
    return torch.cdist(tokens, prototypes).min(1).values.square().mean().item()


def patch_tokens(clip_model, images: torch.Tensor) -> list[torch.Tensor]:
    """Per stage, all patch tokens [n, width] that reach its start, by running the blocks one by one."""
    x, result = clip_model.visual.embeddings_patch(images), []
    starts = [layers[0] for layers in clip_model.visual.transformer.stage_boundaries]
    for layer, block in enumerate(clip_model.visual.transformer.resblocks):
        if layer in starts:
            result.append(x[:, 1:].reshape(-1, x.shape[-1]))
        x = block(x)
    return result


@pytest.mark.parametrize("patch, bound", [(0, math.sqrt(6 / (3 * 8 ** 2 + 64))), (16, math.sqrt(6 / (768 + 64)))])
def test_uniform_prompts_fill_their_range(make_clip, patch, bound):
    """The backbone's own patch is 8."""
    prompts = uniform_prompts(make_clip(1), 200, patch)
    assert prompts.shape == (200, 64)
    assert 0.99 * bound < prompts.max() <= bound and -bound <= prompts.min() < -0.99 * bound
    assert prompts.mean().abs() < 0.02 * bound
    assert prompts.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_token_prompts_are_prototypes_of_what_reaches_each_stage(make_clip, images):
    model = make_clip(12)
    prompts = token_prompts(model, images, 6, seed=1)
    tokens = patch_tokens(model, images)
    assert [tuple(prompt.shape) for prompt in prompts] == [(6, 64)] * 4
    for prototypes, own in zip(prompts, tokens):
        sample = own[torch.randperm(len(own))[:6]]
        assert quantisation_error(own, prototypes) < quantisation_error(own, sample)
        assert (prototypes.norm(dim=-1) <= own.norm(dim=-1).max()).all()
        assert not prototypes.requires_grad
    # each stage has prototypes of its own tokens, not of another's
    assert quantisation_error(tokens[3], prompts[3]) < quantisation_error(tokens[3], prompts[0])


def test_after_enough_rounds_prototypes_are_the_means_of_their_tokens(make_clip, images):
    model = make_clip(4)
    for prototypes, own in zip(token_prompts(model, images, 3, seed=0, rounds=100), patch_tokens(model, images)):
        nearest = torch.cdist(own, prototypes).argmin(1)
        means = torch.stack([own[nearest == centre].mean(0) for centre in range(3)])
        assert torch.allclose(prototypes, means, atol=1e-5)


def test_token_prompts_depend_on_the_seed_alone(make_clip, images):
    model = make_clip(4)
    first = token_prompts(model, images, 5, seed=3)
    torch.manual_seed(99)
    again, other = token_prompts(model, images, 5, seed=3), token_prompts(model, images, 5, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))


def test_more_prompts_than_tokens_are_refused_clearly(make_clip, images):
    with pytest.raises(ValueError, match="20"):  # one image has 16 patch tokens
        token_prompts(make_clip(4), images[:1], 20, seed=0)


def test_half_precision_gives_fp32_prompts(make_clip, images):
    model = make_clip(4).set_precision("bf16")
    assert all(prompt.dtype == torch.float32 for prompt in token_prompts(model, images, 4, seed=0))
    assert uniform_prompts(model, 4).dtype == torch.float32


def test_sampled_images_are_a_seeded_draw_of_weak_views(loader):
    views = torch.cat([batch["weak"] for batch in loader])
    sample = sample_images(loader, 5, seed=1)
    found = [next(i for i, view in enumerate(views) if torch.equal(view, image)) for image in sample]
    assert len(set(found)) == 5
    assert torch.equal(sample, sample_images(loader, 5, seed=1))
    assert not torch.equal(sample, sample_images(loader, 5, seed=2))
    assert sample_images(loader, 64, seed=1).shape == (12, 3, 32, 32)  # fewer where there are fewer


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_a_student_starts_as_prompt_init_says(make_clip, make_cfg, loader, trainer):
    values = {"PROMPT_NUM": 7, "MULTI_LAYER_PROMPT.NUM": 3, "PROMPT_INIT_IMAGES": 8, "SEED": 4}
    model, num = make_clip(12), 7 if trainer == "LaFTer" else 3
    students = {kind: build_student(make_cfg({**values, "PROMPT_INIT": kind}, trainer), model, None, 4, loader)
                for kind in ("tokens", "uniform")}
    prompts = {kind: list(student.multi_prompts) if trainer == "MultiLayerLaFTer" else [student.prompt_embeddings]
               for kind, student in students.items()}
    expected = token_prompts(model, sample_images(loader, 8, seed=4), num, seed=4)
    for kind, own in prompts.items():
        assert [tuple(prompt.shape) for prompt in own] == [(1, num, 64)] * (1 if trainer == "LaFTer" else 4), kind
    assert all(torch.equal(own[0], start) for own, start in zip(prompts["tokens"], expected))
    bound = math.sqrt(6 / (3 * 8 ** 2 + 64))
    assert all(0.9 * bound < prompt.abs().max() <= bound for prompt in prompts["uniform"])


def test_each_trainer_has_its_default_start(make_cfg):
    assert make_cfg(trainer="LaFTer").PROMPT_INIT == "uniform"
    assert make_cfg(trainer="MultiLayerLaFTer").PROMPT_INIT in ("uniform", "tokens")


@pytest.mark.parametrize("trainer", ["LaFTer", "MultiLayerLaFTer"])
def test_the_seed_decides_the_students_start(make_clip, make_cfg, loader, trainer):
    model = make_clip(4)

    def start(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(3)  # whatever was drawn before does not matter
        student = build_student(make_cfg({"SEED": seed, "PROMPT_INIT": "uniform"}, trainer), model, None, 4, loader)
        return {name: student.get_parameter(name) for name, kind in student.parameter_kinds().items()
                if kind in ("prompts", "adapter")}

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
