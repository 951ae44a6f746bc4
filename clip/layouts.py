"""Names of CLIP's tensors: from those that people's files use to those of OpenAI's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import ClipError

WORKS = "ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px or another ViT in the layout of OpenAI or Hugging Face"
WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|model|clip_model|clip)\.)+")  # of DDP, torch.compile, Lightning, …
# buffers and sizes that follow from the rest; logit_bias, of training with a sigmoid loss, shifts all logits alike
SPARE = {"attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size", "logit_bias"}
HUGGING_FACE = (  # their names → OpenAI's, replaced in this order
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # spelled so there
    ("vision_model.post_layernorm.", "visual.ln_post."),
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("visual_projection.weight", "visual.proj"),
    ("text_model.embeddings.token_embedding.", "token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm.", "ln_final."),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("text_projection.weight", "text_projection"),
    (".layer_norm1.", ".ln_1."), (".layer_norm2.", ".ln_2."), (".self_attn.", ".attn."),
    (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."),
)
TRANSPOSED = ("visual.proj", "text_projection")  # Linear layers there, so [out, in]
FOREIGN = (  # a name that tells what a file is that is no CLIP with a vision transformer
    (r"visual\.layer1\.", "a ResNet CLIP"),
    (r"positional_embedding_res$", "a LongCLIP"),
    (r"vision_model\.head\.|visual\.trunk\.attn_pool\.", "a SigLIP"),
    (r"visual\.trunk\.", "a CLIP with an image tower of timm's"),
    (r"embeddings\.class_embedding$", "a CLIP image tower without its projection (CLIPVisionModel; "
                                      "CLIPVisionModelWithProjection has it)"),
    (r"(vit\.|dinov2\.)?embeddings\.(cls_token|patch_embeddings\.)|cls_token$|patch_embed\.|blocks\.\d+\.",
     "a vision transformer that is no CLIP (timm's, DINO's or Hugging Face's ViT)"),
    (r"layer1\.|conv1\.weight$", "a ResNet"),
)


def openai_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a CLIP under the names that OpenAI's checkpoints give them, as they are otherwise.

    Takes Hugging Face's layout (q, k and v apart, projections as [out, in]), OpenCLIP's text tower under `text.`,
    one common prefix, such as `module._orig_mod.`, and spare buffers. Names that are not known stay, for the strict
    loading to name. Raises ClipError for a file that is recognised as something else.
    """
    prefixes = {match[0] if (match := WRAPPERS.match(name)) else "" for name in state}
    prefix = prefixes.pop() if len(prefixes) == 1 else ""
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()
             if name.rpartition(".")[2] not in SPARE}
    for pattern, what in FOREIGN:
        if any(re.match(pattern, name) for name in state):
            raise ClipError(f"this is {what}; what works here: {WORKS}")
    if is_hugging_face(state):
        state = _from_hugging_face(state)
    elif "text.token_embedding.weight" in state:
        state = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    positions = state.get("positional_embedding")
    if positions is not None and len(positions.shape) == 2 and len(positions) == 248:
        raise ClipError(f"this is a LongCLIP, with a positional embedding for 248 tokens; what works here: {WORKS}")
    return state


def is_hugging_face(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of `transformers`, with any prefix."""
    return any(re.search(r"(^|\.)(vision|text)_model\.", name) for name in state)


def _from_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in HUGGING_FACE:
            name = name.replace(theirs, ours)
        renamed[name] = tensor.transpose(0, -1).contiguous() if name in TRANSPOSED and tensor.ndim > 1 else tensor
    for name in list(renamed):
        block, _, kind = name.partition(".q_proj.")
        parts = [renamed.get(f"{block}.{part}_proj.{kind}") for part in "qkv"]
        if kind and all(part is not None and part.shape == parts[0].shape for part in parts):
            renamed[f"{block}.in_proj_{kind}"] = torch.cat(parts)
            for part in "qkv":
                del renamed[f"{block}.{part}_proj.{kind}"]
    return renamed
