"""Files and folders that hold no CLIP that works here are named for what they are."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import clip
from clip import ClipError
from clip.checkpoint import read_checkpoint
from tests.clip_forms import TOWER, VISION, hugging_face, small_state, transformers, write_parts


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return small_state()


@pytest.mark.parametrize("data, words", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 605157884\n",
     "is a Git LFS pointer.*git lfs pull"),
    (b"\n<!DOCTYPE html><html><title>Virus scan warning</title></html>", "is a web page"),
    (b"<HTML>404</HTML>", "is a web page"),
    (b"", "is empty"),
    (b"\x1f\x8b" + bytes(100), "is a packed archive"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "holds TensorFlow.*model.safetensors"),
    (b'{"model_type": "clip", "hidden_act": "gelu"}', "is a text file"),
])
def test_a_file_that_is_something_else_is_named(data, words, tmp_path):
    (tmp_path / "clip.pt").write_bytes(data)
    with pytest.raises(ClipError, match=rf"clip\.pt {words}"):
        clip.load(tmp_path / "clip.pt")


@pytest.mark.parametrize("length", [0x7b, 0x227b, 0x5b0a])
def test_a_safetensors_file_that_starts_like_a_text(length, tmp_path):
    """Its first bytes are the length of its header, which may be those of a brace."""
    header = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    (tmp_path / "x.safetensors").write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert read_checkpoint(tmp_path / "x.safetensors").state.keys() == {"x"}


def siglip() -> dict[str, Tensor]:
    towers = dict(text_config=TOWER | dict(num_hidden_layers=1, vocab_size=50, bos_token_id=48, eos_token_id=49),
                  vision_config=TOWER | dict(num_hidden_layers=1, image_size=16, patch_size=8))
    return transformers.SiglipModel(transformers.SiglipConfig(**towers)).state_dict()


def bare_tower() -> dict[str, Tensor]:
    return transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).state_dict()


def named(*names: str) -> dict[str, Tensor]:
    return {name: torch.ones(1) for name in names}


@pytest.mark.parametrize("make, words", [
    (siglip, "a SigLIP"),
    (bare_tower, "a CLIP image tower without its projection"),
    (lambda: named("visual.trunk.attn_pool.q.weight", "logit_scale"), "a SigLIP"),
    (lambda: named("visual.trunk.stem.0.weight", "logit_scale"), "a CLIP with an image tower of timm's"),
    (lambda: named("module.visual.layer1.0.conv1.weight"), "a ResNet CLIP"),
    (lambda: named("conv1.weight", "layer1.0.conv1.weight"), "a ResNet"),
    (lambda: named("cls_token", "patch_embed.proj.weight"), "a vision transformer that is no CLIP"),
    (lambda: named("vit.embeddings.cls_token"), "a vision transformer that is no CLIP"),
])
def test_another_model_is_named(make, words, tmp_path):
    torch.save(make(), tmp_path / "other.pt")
    with pytest.raises(ClipError, match=rf"other\.pt: this is {words}.*works here: ViT-B/32"):
        clip.load(tmp_path / "other.pt")


def test_a_longclip_is_named(state, tmp_path):
    longer = state | {"positional_embedding": torch.zeros(248, 64)}
    for tensors in (longer, hugging_face(longer), state | {"positional_embedding_res": torch.zeros(10, 64)}):
        torch.save(tensors, tmp_path / "long.pt")
        with pytest.raises(ClipError, match=r"long\.pt: this is a LongCLIP"):
            clip.load(tmp_path / "long.pt")


def test_weights_of_a_quantised_model_are_refused(state, tmp_path):
    torch.save(state | {"visual.proj": torch.ones(64, 32, dtype=torch.int8)}, tmp_path / "int8.pt")
    with pytest.raises(ClipError, match=r"int8\.pt: visual\.proj: .*whole numbers \(torch\.int8\)"):
        clip.load(tmp_path / "int8.pt")


@pytest.mark.parametrize("name", ["vision_model.encoder.layers.1.self_attn.k_proj.bias", "visual_projection.weight",
                                  "text_model.final_layer_norm.bias"])
def test_a_missing_or_misshapen_tensor_of_hugging_face_is_named(name, state, tmp_path):
    ours = {"k_proj.bias": "in_proj_bias", "projection.weight": "visual.proj", "layer_norm.bias": "ln_final.bias"}
    expected = next(new for old, new in ours.items() if name.endswith(old))
    theirs = hugging_face(state)
    for tensors in ({key: tensor for key, tensor in theirs.items() if key != name},
                    theirs | {name: torch.ones(3, 5, 7)}):
        torch.save(tensors, tmp_path / "clip.pt")
        with pytest.raises(ClipError, match=rf"clip\.pt: .*{expected}"):
            clip.load(tmp_path / "clip.pt")


def test_folders_that_are_incomplete_are_named(state, tmp_path):
    with pytest.raises(ClipError, match=r"is a folder without .*model\.safetensors.*pytorch_model\.bin"):
        clip.load(tmp_path)
    write_parts(state, tmp_path / "parts")
    first = min((tmp_path / "parts").glob("model-*.safetensors"))
    first.unlink()
    with pytest.raises(FileNotFoundError, match=rf"index\.json names the part {first.name}, which is not there"):
        clip.load(tmp_path / "parts")
    for text in ("{", "{}", "[1]", '{"weight_map": 3}'):
        (tmp_path / "parts" / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ClipError, match=r"index\.json is no index"):
            clip.load(tmp_path / "parts")


@pytest.mark.parametrize("settings, words", [
    ({"model_type": "siglip"}, "a model of type 'siglip'"),
    ({"model_type": "clip", "text_config": {"hidden_act": "gelu"}, "vision_config": {}}, "hidden_act gelu, quick_gelu"),
    ({"hidden_act": "gelu_new"}, "hidden_act gelu_new"),
    ({"model_type": "clip", "vision_config": {"hidden_size": 1280, "num_attention_heads": 16}}, "16 heads of 80"),
    ({"model_type": "clip", "vision_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps is 1e-06; only 1e-05"),
])
def test_settings_that_no_tensor_tells_are_refused_by_name(settings, words, state, tmp_path):
    torch.save(hugging_face(state), tmp_path / "clip.pt")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ClipError, match=rf"config\.json.*{words}"):
        clip.load(tmp_path / "clip.pt")


@pytest.mark.parametrize("text, words", [
    ("{", "no valid JSON"), ("[]", "holds no settings"), ('{"model_cfg": {}}', "no model_cfg with a vision_cfg"),
    ('{"model_cfg": {"vision_cfg": {"pool_type": "avg"}}}', "pool_type is 'avg'; only 'tok'"),
    ('{"model_cfg": {"vision_cfg": {}, "text_cfg": {"no_causal_mask": true}}}', "no_causal_mask is True; only False"),
    ('{"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {"mean": [1, 2]}}', "mean and std must be three numbers"),
])
def test_settings_of_open_clip_that_no_tensor_tells(text, words, state, tmp_path):
    torch.save(state, tmp_path / "clip.pt")
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(ClipError, match=rf"open_clip_config\.json.*{words}"):
        clip.load(tmp_path / "clip.pt")
