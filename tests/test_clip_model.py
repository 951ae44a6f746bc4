"""clip.model against open_clip with the same random weights, strict loading, image sizes and precisions."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from conftest import randomise

import clip
from clip import ClipError
from clip.model import build_model, resize_positional_embedding
from clip.transformer import LayerNorm

open_clip = pytest.importorskip("open_clip")

TEXTS = ["a dog", "a photo of a very happy cat that sits on a red chair, in the rain, at night.", "", "joy! 😀"]


def assert_features_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """To 1e-5 of the feature's norm, row by row."""
    assert ours.shape == theirs.shape
    distance = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
    assert distance.max() < 1e-5, f"relative distances {distance.tolist()}"


def small_open_clip(layers: int, quick_gelu: bool):
    vision = open_clip.CLIPVisionCfg(layers=layers, width=128, head_width=64, patch_size=8, image_size=32)
    text = open_clip.CLIPTextCfg(context_length=77, vocab_size=49_408, width=64, heads=1, layers=3)
    return open_clip.model.CLIP(48, vision, text, quick_gelu=quick_gelu)


def compare_with(theirs, quick_gelu: bool, resolution: int) -> None:
    theirs = randomise(theirs).eval()
    ours = build_model(theirs.state_dict(), quick_gelu=quick_gelu)
    images, tokens = torch.randn(3, 3, resolution, resolution), clip.tokenize(TEXTS)
    with torch.no_grad():
        assert_features_close(ours.encode_image(images), theirs.encode_image(images))
        assert_features_close(ours.encode_text(tokens), theirs.encode_text(tokens))
        logits, transposed = ours(images, tokens)
        expected = theirs.logit_scale.exp() * (F.normalize(theirs.encode_image(images), dim=-1)
                                               @ F.normalize(theirs.encode_text(tokens), dim=-1).t())
    assert torch.allclose(logits, expected, atol=1e-4)
    assert torch.equal(transposed, logits.t())


def test_vit_b32_equals_open_clip():
    torch.manual_seed(0)
    compare_with(open_clip.create_model("ViT-B-32-quickgelu", pretrained=None), True, 224)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_small_24_layer_model_equals_open_clip(quick_gelu):
    torch.manual_seed(1)
    compare_with(small_open_clip(24, quick_gelu), quick_gelu, 32)


def test_the_activation_matters():
    torch.manual_seed(2)
    theirs = randomise(small_open_clip(4, quick_gelu=False)).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        quick = build_model(theirs.state_dict()).encode_image(images)
        assert (quick - theirs.encode_image(images)).norm() > 1e-3 * quick.norm()


def test_a_batch_of_texts_is_cut_to_its_longest_and_gives_the_same_features(make_clip):
    model, tokens = make_clip(layers=1, text_layers=3), clip.tokenize(TEXTS)
    lengths = []
    model.transformer.register_forward_hook(lambda module, inputs, output: lengths.append(inputs[0].shape[1]))
    with torch.no_grad():
        together = model.encode_text(tokens)
        alone = torch.cat([model.encode_text(row[None]) for row in tokens])
        x = model.token_embedding(tokens) + model.positional_embedding
        full = model.ln_final(model.transformer(x))[torch.arange(len(TEXTS)), tokens.argmax(1)] @ model.text_projection
    assert lengths == [tokens.argmax(1).max() + 1, *(tokens.argmax(1) + 1).tolist(), 77]
    assert_features_close(together, full)
    assert_features_close(alone, full)


def test_every_missing_key_is_refused_by_name(make_clip):
    state = make_clip(layers=2, text_layers=1).state_dict()
    for name in state:
        with pytest.raises(ClipError) as error:
            build_model({key: tensor for key, tensor in state.items() if key != name})
        assert name in str(error.value)


# the sizes are read from these
SIZED = ["visual.conv1.weight", "visual.positional_embedding", "visual.proj", "positional_embedding",
         "token_embedding.weight"]


def test_every_wrong_shape_is_refused_by_name(make_clip):
    state = make_clip(layers=2, text_layers=1).state_dict()
    for name in set(state) - set(SIZED):
        with pytest.raises(ClipError, match="wrong shape of ") as error:
            build_model({**state, name: state[name][None]})
        assert name in str(error.value)


@pytest.mark.parametrize("name", SIZED)
def test_a_wrong_number_of_dimensions_is_refused_by_name(make_clip, name):
    state = make_clip(layers=2, text_layers=1).state_dict()
    for wrong in (state[name][None], state[name].flatten()):
        with pytest.raises(ClipError, match=rf"(?<![\w.]){re.escape(name)}"):
            build_model({**state, name: wrong})


@pytest.mark.parametrize("name, shape", [("visual.positional_embedding", (17, 63)), ("visual.ln_post.weight", (65,)),
                                         ("visual.transformer.resblocks.1.mlp.c_fc.weight", (64, 256)),
                                         ("text_projection", (64, 31))])
def test_a_wrong_size_is_refused_by_name(make_clip, name, shape):
    state = make_clip(layers=2, text_layers=1).state_dict()
    with pytest.raises(ClipError, match=name):
        build_model({**state, name: torch.zeros(shape)})


def test_unexpected_keys_are_refused_by_name(make_clip):
    state = make_clip(layers=2).state_dict()
    with pytest.raises(ClipError, match="unexpected keys visual.extra.weight"):
        build_model({**state, "visual.extra.weight": torch.zeros(3)})


def test_openai_archives_extras_are_no_surprise(make_clip):
    model = make_clip(layers=2, text_layers=1)
    extras = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77),
              "vocab_size": torch.tensor(49_408)}
    loaded = build_model({**model.state_dict(), **extras})
    assert set(loaded.state_dict()) == set(model.state_dict())
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert not loaded.training


def test_models_from_one_state_dict_own_their_weights(make_clip):
    state = make_clip(layers=2, text_layers=1).state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    first, second = build_model(state), build_model(state)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor), name
        assert torch.equal(second.state_dict()[name], tensor), name


def test_resnet_is_refused_with_what_works():
    with pytest.raises(ClipError, match=r"ResNet.*ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px"):
        build_model({"visual.layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)})


def test_an_image_tower_alone_has_no_text(make_clip):
    full = make_clip(layers=2, text_layers=1)
    tower = build_model({name: t for name, t in full.state_dict().items() if name.startswith("visual.")})
    images = torch.randn(2, 3, 32, 32)
    assert full.has_text and not tower.has_text
    assert torch.equal(tower.encode_image(images), full.encode_image(images))
    with pytest.raises(ClipError, match="no text tower.*DATASET.TEXT_FEATURES"):
        tower.encode_text(clip.tokenize("a dog"))


def test_positional_embedding_keeps_its_values_at_its_own_size():
    embedding = torch.randn(17, 64)
    assert torch.allclose(resize_positional_embedding(embedding, 32, 8), embedding, atol=1e-6)


def test_positional_embedding_interpolates_space_and_leaves_cls():
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    plane = torch.stack([rows, columns], dim=-1).flatten(0, 1)  # each patch's own position
    embedding = torch.cat([torch.tensor([[100.0, -100.0]]), plane])
    larger = resize_positional_embedding(embedding, 128, 8)
    assert larger.shape == (1 + 16 * 16, 2)
    assert torch.equal(larger[0], embedding[0])
    grid = larger[1:].reshape(16, 16, 2)
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5  # centres of 16 pixels on the old 8 (away from the border)
    assert torch.allclose(grid[4:12, 8, 0], expected[4:12], atol=1e-4)
    assert torch.allclose(grid[8, 4:12, 1], expected[4:12], atol=1e-4)


def test_another_image_size_is_taken_and_a_wrong_image_refused(make_clip):
    state = make_clip(layers=2).state_dict()
    model = build_model(state, image_size=48)
    assert model.visual.input_resolution == 48
    assert model.encode_image(torch.randn(2, 3, 48, 48)).shape == (2, 32)
    with pytest.raises(ClipError, match=r"\(32, 32\).*48"):
        model.encode_image(torch.randn(2, 3, 32, 32))
    with pytest.raises(ClipError, match="50.*patch size 8"):
        build_model(state, image_size=50)


@pytest.mark.parametrize("precision, dtype, tolerance", [("bf16", torch.bfloat16, 0.1), ("fp16", torch.float16, 0.01)])
def test_half_precision_keeps_layernorms_in_fp32_and_the_features_near(make_clip, images, precision, dtype, tolerance):
    model = make_clip(layers=4, text_layers=2)
    tokens = clip.tokenize(TEXTS)
    with torch.no_grad():
        expected = model.encode_image(images), model.encode_text(tokens)
        assert model.set_precision(precision) is model
        found = model.encode_image(images), model.encode_text(tokens)
    norms = {id(p) for m in model.modules() if isinstance(m, LayerNorm) for p in m.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in norms or name == "logit_scale" else dtype), name
    assert model.dtype == dtype
    for half, full in zip(found, expected):
        assert half.dtype == dtype
        assert (half.float() - full).norm() < tolerance * full.norm()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_fp32_prompts_meet_a_half_precision_backbone(make_clip, images, precision, mode):
    model = make_clip(layers=4).set_precision(precision)
    prompts = [torch.randn(1, 2, 64, requires_grad=True) for _ in range(4)]
    features, _ = model.visual.forward_multi_stage_prompts(images[:2], prompts, mode)
    features.float().square().sum().backward()
    for prompt in prompts:
        assert prompt.dtype == prompt.grad.dtype == torch.float32
        assert prompt.grad.isfinite().all() and prompt.grad.abs().sum() > 0


def test_an_unknown_precision_is_refused(make_clip):
    with pytest.raises(ClipError, match="'int8'; valid: fp32, fp16, bf16"):
        make_clip(layers=1).set_precision("int8")
