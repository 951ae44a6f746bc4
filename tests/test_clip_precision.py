"""A CLIP, or a part of it, cast by hand with .half(), .bfloat16() or .to(dtype), as OpenAI's classes may be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import clip
from clip.transformer import LayerNorm
from tests.conftest import randomise

TEXTS = ["a dog", "a photo of a very happy cat that sits on a red chair, in the rain, at night.", ""]
BY_HAND = {"half": lambda module: module.half(), "bfloat16": lambda module: module.bfloat16(),
           "to(float16)": lambda module: module.to(torch.float16),
           "to(bfloat16)": lambda module: module.to(torch.bfloat16),
           "there and back": lambda module: module.half().float()}
TOLERANCE = {torch.float16: 0.01, torch.bfloat16: 0.1, torch.float32: 0.01}


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype
    assert (found.float() - expected).norm() < TOLERANCE[dtype] * expected.norm()


@pytest.mark.parametrize("cast", BY_HAND.values(), ids=BY_HAND)
@torch.no_grad()
def test_layernorm_computes_in_fp32_whatever_its_weights(cast):
    norm = randomise(LayerNorm(64))
    x = 1000 + torch.randn(2, 5, 64)  # in bf16 no difference would be left, in fp16 the squares would overflow
    norm = cast(norm)
    assert_near(norm(x), F.layer_norm(x, (64,), norm.weight.float(), norm.bias.float()), torch.float32)
    for dtype in (torch.float16, torch.bfloat16):  # computed in fp32, then rounded once
        given = x.to(dtype)
        assert torch.equal(norm(given), F.layer_norm(given.float(), (64,), norm.weight.float(), norm.bias.float())
                           .to(dtype))


@pytest.mark.parametrize("cast", BY_HAND.values(), ids=BY_HAND)
@torch.no_grad()
def test_every_module_of_a_clip_that_was_cast_by_hand(make_clip, images, cast):
    model, tokens, images = make_clip(layers=4, text_layers=2), clip.tokenize(TEXTS), images[:3]

    def outputs() -> dict[str, torch.Tensor]:
        visual, dtype = model.visual, model.dtype
        x = visual.embeddings_patch(images)
        block, mask = model.transformer.resblocks[0], model.transformer.attn_mask[:17, :17].to(dtype)
        return {"patches": x, "attention": visual.transformer.resblocks[0].attn(x),
                "attention with a mask": block.attn(x, mask), "attention of CLS": block.attn(x, cls_only=True),
                "block": block(x, mask), "transformer": model.transformer(x), "stages": visual.transformer(x)[0],
                "stage input": visual.transformer.stage_inputs(x)[-1], "projected": visual.project(x[:, 0]),
                "after patches": visual.forward_after_patch_embeddings(x),
                "staged": visual.forward_multi_stage_prompts(x)[0], "layer": visual.transformer(x)[1][0][0],
                "image": model.encode_image(images), "text": model.encode_text(tokens),
                "logits": model(images, tokens)[0]}

    expected = outputs()
    assert cast(model) is model
    for name, found in outputs().items():
        assert_near(found, expected[name], model.dtype)


@pytest.mark.parametrize("cast", BY_HAND.values(), ids=BY_HAND)
@torch.no_grad()
def test_the_image_tower_alone_cast_by_hand(make_clip, images, cast):
    model, tokens = make_clip(layers=4, text_layers=2), clip.tokenize(TEXTS)
    expected = model(images, tokens)[0]
    cast(model.visual)
    assert_near(model(images, tokens)[0], expected, model.dtype)
    assert model.encode_text(tokens).dtype == torch.float32


@pytest.mark.parametrize("cast", BY_HAND.values(), ids=BY_HAND)
@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_prompts_of_any_precision_meet_a_backbone_cast_by_hand(make_clip, images, cast, precision, mode):
    model = make_clip(layers=4)
    prompts = [torch.randn(1, 2, 64, dtype=precision) for _ in range(4)]
    expected, _ = model.visual.forward_multi_stage_prompts(images[:2], [prompt.float() for prompt in prompts], mode)
    cast(model)
    given = [prompt.requires_grad_() for prompt in prompts]
    features, _ = model.visual.forward_multi_stage_prompts(images[:2], given, mode)
    assert_near(features.detach(), expected, model.dtype)
    features.float().square().sum().backward()
    for prompt in given:
        assert prompt.grad.dtype == precision and prompt.grad.isfinite().all() and prompt.grad.abs().sum() > 0


def test_layernorms_of_a_half_precision_tower_still_train(make_clip, images):
    visual = make_clip(layers=2).visual.bfloat16()
    visual.ln_post.requires_grad_(True)
    visual(images).float().square().sum().backward()
    assert visual.ln_post.weight.grad.dtype == torch.bfloat16 and visual.ln_post.weight.grad.abs().sum() > 0
