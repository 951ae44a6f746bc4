"""Writes a small CLIP in the forms in which people have theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clip.model import CLIP
from tests.conftest import randomise

transformers = pytest.importorskip("transformers")

TOWER = dict(hidden_size=64, intermediate_size=256, num_attention_heads=1)
TEXT = TOWER | dict(num_hidden_layers=1, vocab_size=50, max_position_embeddings=10, bos_token_id=48, eos_token_id=49)
VISION = TOWER | dict(num_hidden_layers=2, image_size=16, patch_size=8, projection_dim=32)


def small_state() -> dict[str, Tensor]:
    """A random CLIP in OpenAI's layout: 2 + 1 layers of width 64, 16 px, 10 tokens of 50."""
    torch.manual_seed(0)
    return dict(randomise(CLIP(32, 16, 2, 64, 8, 10, 50, 64, 1, 1)).state_dict())


def hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in the names of transformers, whose own strict loading checks them in `hub_model`."""
    theirs = {"logit_scale": state["logit_scale"]}
    for tower, ours, embedding, before, after, projection in (
            ("vision_model", "visual.", "patch_embedding.weight", "conv1.weight", "post_layernorm", "visual.proj"),
            ("text_model", "", "token_embedding.weight", "token_embedding.weight", "final_layer_norm",
             "text_projection")):
        norm = "visual.ln_post" if ours else "ln_final"
        theirs[f"{tower}.embeddings.{embedding}"] = state[ours + before]
        theirs[f"{tower}.embeddings.position_embedding.weight"] = state[f"{ours}positional_embedding"]
        theirs[f"{'visual' if ours else 'text'}_projection.weight"] = state[projection].t().contiguous()
        for kind in ("weight", "bias"):
            theirs[f"{tower}.{after}.{kind}"] = state[f"{norm}.{kind}"]
        for layer in range(2 if ours else 1):
            old, new = f"{ours}transformer.resblocks.{layer}", f"{tower}.encoder.layers.{layer}"
            for kind in ("weight", "bias"):
                for part, tensor in zip("qkv", state[f"{old}.attn.in_proj_{kind}"].chunk(3)):
                    theirs[f"{new}.self_attn.{part}_proj.{kind}"] = tensor.clone()
                for a, b in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"),
                             ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                    theirs[f"{new}.{b}.{kind}"] = state[f"{old}.{a}.{kind}"]
    theirs["vision_model.embeddings.class_embedding"] = state["visual.class_embedding"]
    for kind in ("weight", "bias"):
        theirs[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
    return theirs


def hub_model(state: dict[str, Tensor], act: str = "quick_gelu"):
    config = transformers.CLIPConfig(text_config=TEXT | {"hidden_act": act}, vision_config=VISION | {"hidden_act": act},
                                     projection_dim=32)
    model = transformers.CLIPModel(config).eval()
    model.load_state_dict(hugging_face(state))
    return model


def write_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path)
    return path


def write_bin(state: dict[str, Tensor], folder: Path) -> Path:
    """A folder as older versions of transformers leave it, with their buffers."""
    buffers = {"vision_model.embeddings.position_ids": torch.arange(5)[None],
               "text_model.embeddings.position_ids": torch.arange(10)[None]}
    folder.mkdir()
    hub_model(state).config.save_pretrained(folder)
    torch.save(hugging_face(state) | buffers, folder / "pytorch_model.bin")
    return folder


def write_parts(state: dict[str, Tensor], folder: Path) -> Path:
    hub_model(state).save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2 and (folder / "model.safetensors.index.json").is_file()
    return folder


def write_hub(state: dict[str, Tensor], folder: Path) -> Path:
    hub_model(state).save_pretrained(folder)
    return folder


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS = {
    "hub folder": write_hub,
    "hub file": lambda state, path: write_hub(state, path) / "model.safetensors",
    "hub folder, pytorch_model.bin": write_bin,
    "hub folder in parts": write_parts,
    "hub index": lambda state, path: write_parts(state, path) / "model.safetensors.index.json",
    "hub names, prefixed": lambda state, path: saved(prefixed(hugging_face(state), "module.clip."), path),
    "safetensors": write_safetensors,
    "state_dict": lambda state, path: saved({"epoch": 3, "state_dict": state, "optimizer": {"state": {}}}, path),
    "model": lambda state, path: saved({"model": state, "optimizer": {"state": {}}, "lr": 0.1}, path),
    "model_state_dict": lambda state, path: saved({"epoch": 1, "model_state_dict": state}, path),
    "Lightning": lambda state, path: saved({"epoch": 1, "state_dict": prefixed(state, "model.")}, path),
    "buffers": lambda state, path: saved(state | {"attn_mask": torch.zeros(10, 10), "context_length": torch.tensor(10),
                                                  "logit_bias": torch.tensor(-10.0)}, path),
    "OpenCLIP's text tower": lambda state, path: saved(
        {name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}": tensor
         for name, tensor in state.items()}, path),
    **{prefix: lambda state, path, prefix=prefix: saved(prefixed(state, prefix), path)
       for prefix in ("module.", "_orig_mod.", "model.", "clip_model.", "module._orig_mod.", "module.model.clip.")},
}
