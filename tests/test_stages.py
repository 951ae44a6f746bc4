"""The image tower's stages: what enters each layer, what comes out, and that there is one encoder only."""

from __future__ import annotations

import pytest
import torch

from clip import ClipError
from clip.model import build_model
from clip.stages import check_stages, default_stages
from clip.transformer import MultiLayerTransformer

PATCHES = 16  # 32 px, patches of 8


def record_inputs(model) -> list[torch.Tensor]:
    """The tokens that enter each layer of the image tower, gathered while it runs."""
    inputs = []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    return inputs


def stage_prompts(num: int, width: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, num, width, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("layers, expected", [
    (12, [range(4), range(4, 8), range(8, 11), range(11, 12)]),
    (24, [range(8), range(8, 16), range(16, 22), range(22, 24)]),
    (36, [range(12), range(12, 24), range(24, 33), range(33, 36)]),
    (4, [[0], [1], [2], [3]]),
    (2, [[0], [1]]),
])
def test_default_stages(layers, expected):
    assert default_stages(layers) == [list(stage) for stage in expected]


@pytest.mark.parametrize("layers", range(1, 49))
def test_default_stages_of_any_depth_are_valid(layers):
    stages = default_stages(layers)
    assert check_stages(stages, layers) == stages
    assert len(stages) == min(layers, 4)


@pytest.mark.parametrize("stages", [
    [[0, 1], [1, 2]], [[0, 2], [1]], [[0], [2]], [[], [0, 1, 2]], [[0, 1]], [[1], [2], [3]], [[0, 1, 2], [3]], [[]],
    [[0], [1], [-1]],
])
def test_stages_that_do_not_cover_every_layer_once_in_order_are_refused(make_clip, stages):
    with pytest.raises(ClipError, match="stages .* do not divide the 3 layers"):
        check_stages(stages, 3)
    with pytest.raises(ClipError, match="stages .* do not divide the 3 layers"):
        build_model(make_clip(layers=3).state_dict(), stage_boundaries=stages)


@pytest.mark.parametrize("stages", [[0, 1, 2], [[0, 1], ["two"]], [[0.5, 1], [2]], ["abc"]])
def test_what_is_no_list_of_lists_of_layers_is_refused_clearly(stages):
    with pytest.raises(ClipError, match="stages"):
        check_stages(stages, 3)


def test_given_stages_are_taken(make_clip):
    stages = [[0], [1, 2], [3]]
    model = build_model(make_clip(layers=4).state_dict(), stage_boundaries=stages)
    assert model.visual.transformer.stage_boundaries == stages
    assert model.visual.transformer.num_stages == 3


@pytest.mark.parametrize("layers", [3, 12, 24])
def test_without_prompts_the_staged_forward_is_the_plain_one_exactly(make_clip, images, layers):
    model = make_clip(layers)
    plain = model.encode_image(images)
    tokens = model.visual.embeddings_patch(images)
    nothing = [None] * model.visual.transformer.num_stages
    for mode in ("append", "replace"):
        for x in (images, tokens):
            assert torch.equal(model.visual.forward_multi_stage_prompts(x, prompt_mode=mode)[0], plain)
            assert torch.equal(model.visual.forward_multi_stage_prompts(x, nothing, mode)[0], plain)
    assert torch.equal(model.visual.forward_after_patch_embeddings(tokens), plain)


@pytest.mark.parametrize("mode, present", [("append", [3, 6, 9, 12]), ("replace", [3, 3, 3, 3])])
def test_tokens_of_each_layer(make_clip, images, mode, present):
    model, prompts = make_clip(12), stage_prompts(3)
    inputs = record_inputs(model)
    model.visual.forward_multi_stage_prompts(images, prompts, mode)
    counts = [present[stage] for stage in (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3)]
    assert [x.shape[1] for x in inputs] == [1 + count + PATCHES for count in counts]


@pytest.mark.parametrize("mode, present", [("append", [2, 2, 4, 4]), ("replace", [2, 2, 2, 2])])
def test_a_stage_without_a_prompt_gets_nothing(make_clip, images, mode, present):
    model, prompts = make_clip(4), stage_prompts(2)
    inputs = record_inputs(model)
    model.visual.forward_multi_stage_prompts(images, [prompts[0], None, prompts[2], None], mode)
    assert [x.shape[1] for x in inputs] == [1 + count + PATCHES for count in present]


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_a_stages_prompts_stand_after_cls_and_before_the_rest(make_clip, images, mode):
    model, prompts = make_clip(12), stage_prompts(3)
    outputs = []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))
    model.visual.forward_multi_stage_prompts(images, prompts, mode)
    before = model.visual.embeddings_patch(images)
    for first, prompt in zip((0, 4, 8, 11), prompts):
        entering = outputs[first][0]
        kept = before[:, 1:] if mode == "append" or not first else before[:, 4:]  # replace: without the last three
        assert torch.equal(entering, torch.cat([before[:, :1], prompt.expand(8, -1, -1), kept], dim=1))
        following = {0: 4, 4: 8, 8: 11, 11: 12}[first]
        before = outputs[following - 1][1]


def test_injection_takes_the_sequences_type(make_clip):
    transformer = MultiLayerTransformer(64, 4, 1)
    x = torch.zeros(2, 5, 64, dtype=torch.bfloat16)
    injected = transformer._inject_prompt_at_stage(x, torch.ones(1, 3, 64))
    assert injected.dtype == torch.bfloat16
    assert injected[:, :, 0].tolist() == [[0, 1, 1, 1, 0, 0, 0, 0]] * 2


@pytest.mark.parametrize("layers, depths", [(12, [4, 4, 3, 1]), (24, [8, 8, 6, 2])])
def test_stage_outputs_are_the_cls_feature_after_each_layer(make_clip, images, layers, depths):
    model, after = make_clip(layers), []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda module, args, output: after.append(output[:, 0]))
    features, stage_outputs = model.visual.forward_multi_stage_prompts(images, stage_prompts(2))
    assert [len(outputs) for outputs in stage_outputs] == depths
    flat = [output for outputs in stage_outputs for output in outputs]
    assert all(torch.equal(output, expected) for output, expected in zip(flat, after, strict=True))
    assert all(output.shape == (8, 64) for output in flat)
    assert torch.equal(features, model.visual.project(after[-1]))


def test_stage_inputs_are_the_plain_encoders_tokens(make_clip, images):
    model = make_clip(12)
    inputs = record_inputs(model)
    stage_inputs = model.visual.transformer.stage_inputs(model.visual.embeddings_patch(images))
    assert len(stage_inputs) == 4
    assert all(torch.equal(x, inputs[first]) for x, first in zip(stage_inputs, (0, 4, 8, 11)))


def test_wrong_counts_of_prompts_and_unknown_modes_are_refused(make_clip, images):
    visual = make_clip(4).visual
    with pytest.raises(ClipError, match="3 stage prompts were given for 4 stages"):
        visual.forward_multi_stage_prompts(images, stage_prompts(2)[:3])
    with pytest.raises(ClipError, match="'prepend'; valid: append, replace"):
        visual.forward_multi_stage_prompts(images, stage_prompts(2), "prepend")


def test_there_is_one_copy_of_the_encoder(make_clip):
    model = make_clip(12, text_layers=1)
    visual = model.visual
    assert visual.multi_transformer is visual.transformer
    assert isinstance(visual.transformer, MultiLayerTransformer)
    parameters = list(model.parameters(recurse=True))
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters)
    width, embed_dim, context, vocabulary = 64, 32, 77, 49_408
    block = 12 * width ** 2 + 13 * width  # attention 4w² + 4w, MLP 8w² + 5w, two LayerNorms 4w
    image = 3 * 8 * 8 * width + width + (1 + PATCHES) * width + 4 * width + width * embed_dim + 12 * block
    text = vocabulary * width + context * width + 2 * width + width * embed_dim + block
    assert sum(parameter.numel() for parameter in parameters) == image + text + 1  # and the logit scale
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == image + text + 1
    assert not [name for name in model.state_dict() if "multi_transformer" in name]
