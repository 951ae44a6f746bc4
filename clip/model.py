"""CLIP (Radford et al., 2021, arXiv 2103.00020) with an image tower that takes prompts stage by stage.

Parameter names are those of OpenAI's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ClipError
from .layouts import openai_layout
from .transformer import LayerNorm, MultiLayerTransformer, ResidualAttentionBlock, Transformer

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
TEXT_TOWER = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")
INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


class Source(NamedTuple):
    """Where the weights of a model that `clip.load` made come from."""

    path: Path  # the file of the weights
    form: str  # such as "TorchScript archive"
    official: str  # "ViT-B/32", …: the file is OpenAI's, by its SHA-256; "": it is another
    weights_hash: str  # see `clip.weights_hash`
    pixel_mean: tuple[float, ...]  # that the images it was trained on were normalised with
    pixel_std: tuple[float, ...]


class VisualTransformer(nn.Module):
    """CLIP's image tower. `transformer` knows its stages; `multi_transformer` is the same module."""

    def __init__(self, input_resolution: int, patch_size: int, width: int, layers: int, heads: int,
                 output_dim: int, stage_boundaries: Sequence[Sequence[int]] | None = None, quick_gelu: bool = True):
        super().__init__()
        self.input_resolution, self.patch_size, self.output_dim = input_resolution, patch_size, output_dim
        scale = width ** -0.5
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((input_resolution // patch_size) ** 2 + 1, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = MultiLayerTransformer(width, layers, heads, stage_boundaries=stage_boundaries,
                                                 quick_gelu=quick_gelu)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    @property
    def multi_transformer(self) -> MultiLayerTransformer:
        return self.transformer

    def embeddings_patch(self, images: Tensor) -> Tensor:
        """Images [batch, 3, height, width] → tokens [batch, 1 + patches, width]: CLS first, positions added, ln_pre."""
        if images.shape[-2:] != (self.input_resolution, self.input_resolution):
            raise ClipError(f"images are {tuple(images.shape[-2:])} px, but the model was built for "
                            f"{self.input_resolution} px; set INPUT.SIZE or resize them")
        x = self.conv1(images.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(len(x), 1, -1)
        return self.ln_pre(torch.cat([cls, x], dim=1) + self.positional_embedding)

    def project(self, cls: Tensor) -> Tensor:
        """CLS features [..., width] → CLIP's joint space [..., output_dim]; also for features of inner layers."""
        return self.ln_post(cls) @ self.proj

    def forward_after_patch_embeddings(self, x: Tensor) -> Tensor:
        """Tokens [batch, tokens, width], prompts among them if any → features [batch, output_dim]."""
        return self.project(self.transformer(x, cls_only=True)[0][:, 0])

    def forward_multi_stage_prompts(self, x: Tensor, multi_prompts: Sequence[Tensor | None] | None = None,
                                    prompt_mode: str = "append") -> tuple[Tensor, list[list[Tensor]]]:
        """Images, or tokens of `embeddings_patch` → (features [batch, output_dim], stage_outputs)."""
        if x.ndim == 4:
            x = self.embeddings_patch(x)
        x, stage_outputs = self.transformer(x, multi_prompts, prompt_mode, cls_only=True)
        return self.project(x[:, 0]), stage_outputs

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_after_patch_embeddings(self.embeddings_patch(images))


class CLIP(nn.Module):
    """Both towers; with `context_length` 0 the image tower alone (`has_text` is then False)."""

    def __init__(self, embed_dim: int, image_resolution: int, vision_layers: int, vision_width: int,
                 vision_patch_size: int, context_length: int, vocab_size: int, transformer_width: int,
                 transformer_heads: int, transformer_layers: int, *,
                 stage_boundaries: Sequence[Sequence[int]] | None = None, quick_gelu: bool = True):
        super().__init__()
        self.embed_dim, self.context_length, self.quick_gelu = embed_dim, context_length, quick_gelu
        self.source: Source | None = None  # what `clip.load` read the weights from
        self.visual = VisualTransformer(image_resolution, vision_patch_size, vision_width, vision_layers,
                                        vision_width // 64, embed_dim, stage_boundaries, quick_gelu)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        if self.has_text:
            self.transformer = Transformer(transformer_width, transformer_layers, transformer_heads,
                                           causal_mask(context_length), quick_gelu)
            self.token_embedding = nn.Embedding(vocab_size, transformer_width)
            self.positional_embedding = nn.Parameter(0.01 * torch.randn(context_length, transformer_width))
            self.ln_final = LayerNorm(transformer_width)
            self.text_projection = nn.Parameter(transformer_width ** -0.5 * torch.randn(transformer_width, embed_dim))
            nn.init.normal_(self.token_embedding.weight, std=0.02)

    @property
    def has_text(self) -> bool:
        return self.context_length > 0

    @property
    def dtype(self) -> torch.dtype:
        return self.visual.conv1.weight.dtype

    @property
    def precision(self) -> str:
        """`fp32`, `fp16` or `bf16`: that of the image tower."""
        return next(name for name, dtype in PRECISIONS.items() if dtype == self.dtype)

    def encode_image(self, images: Tensor) -> Tensor:
        """Images [batch, 3, r, r], normalised → features [batch, embed_dim], not normalised."""
        return self.visual(images)

    def encode_text(self, text: Tensor) -> Tensor:
        """Token ids [batch, ≤ context_length] → features [batch, embed_dim], not normalised.

        A text's feature is read at its end-of-text token (the largest id) under a causal mask, so nothing
        after the longest text of the batch can matter: those columns are cut off.
        """
        if not self.has_text:
            raise ClipError("this checkpoint has no text tower; load a full CLIP, or set DATASET.TEXT_FEATURES")
        end = text.argmax(dim=-1)
        text = text[:, : int(end.max()) + 1]
        x = self.token_embedding(text) + self.positional_embedding[: text.shape[1]]
        x = self.ln_final(self.transformer(x))
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection

    def forward(self, images: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """→ (logits per image [images, texts], logits per text [texts, images]): scaled cosines."""
        image_features = F.normalize(self.encode_image(images), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1).to(image_features.dtype)
        logits = self.logit_scale.exp().to(image_features.dtype) * image_features @ text_features.t()
        return logits, logits.t()

    def fold_gelu(self) -> CLIP:
        """Make QuickGELU cheaper in both towers (`ResidualAttentionBlock.fold_gelu`). The model is the same function
        up to rounding, but its state dict is no longer that of its checkpoint. In fp32, before `set_precision`."""
        for module in self.modules():
            if isinstance(module, ResidualAttentionBlock):
                module.fold_gelu()
        return self

    def set_precision(self, precision: str) -> CLIP:
        """Cast the weights to `fp32`, `fp16` or `bf16`, once; LayerNorms and the logit scale stay fp32."""
        if precision not in PRECISIONS:
            raise ClipError(f"unknown precision {precision!r}; valid: {', '.join(PRECISIONS)}")
        for module in self.modules():
            if not isinstance(module, LayerNorm):
                for name, parameter in module.named_parameters(recurse=False):
                    if name != "logit_scale":
                        parameter.data = parameter.data.to(PRECISIONS[precision])
        return self


def build_model(state_dict: dict[str, Tensor], *, image_size: int | None = None,
                stage_boundaries: Sequence[Sequence[int]] | None = None, quick_gelu: bool = True) -> CLIP:
    """A CLIP in fp32 and evaluation mode from a state dict; every size is read from its shapes.

    The layout is OpenAI's, or one that `openai_layout` makes it from. `image_size` other than the checkpoint's
    interpolates the positional embedding. Raises ClipError for what is no CLIP with a vision transformer, and for
    keys that are missing or unexpected, by name.
    """
    state = openai_layout(state_dict)
    whole = [name for name, tensor in state.items() if not tensor.is_floating_point()]
    if whole:
        raise ClipError(f"{', '.join(whole[:5])}: these weights are whole numbers ({state[whole[0]].dtype}), as of a "
                        "quantised model, and their scales are not known here; take the weights in fp32 or fp16")
    state = {name: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
             for name, tensor in state.items()}
    sizes = _infer_sizes(state)
    if image_size is not None and image_size != sizes["image_resolution"]:
        state["visual.positional_embedding"] = resize_positional_embedding(
            state["visual.positional_embedding"], image_size, sizes["vision_patch_size"])
        sizes["image_resolution"] = image_size
    with torch.device("meta"):  # no weights are drawn only to be overwritten
        model = CLIP(**sizes, stage_boundaries=stage_boundaries, quick_gelu=quick_gelu)
    if model.has_text:
        model.transformer.attn_mask = causal_mask(model.context_length)
    else:
        state.setdefault("logit_scale", torch.tensor(INITIAL_LOGIT_SCALE))  # an image tower alone need not carry it
    _load_strictly(model, state)
    return model.eval()


def causal_mask(length: int) -> Tensor:
    """Additive mask [length, length]: a token sees itself and those before it."""
    return torch.full((length, length), float("-inf")).triu_(1)


def _infer_sizes(state: dict[str, Tensor]) -> dict[str, int]:
    required = ["visual.conv1.weight", "visual.positional_embedding", "visual.proj"]
    has_text = any(name.startswith(TEXT_TOWER) for name in state)
    if has_text:
        required += ["positional_embedding", "token_embedding.weight"]
    missing = [name for name in required if name not in state]
    if missing:
        raise ClipError(f"not a CLIP checkpoint in the layout of OpenAI or Hugging Face: missing keys "
                        f"{', '.join(missing)}; it holds {', '.join(list(state)[:5])}, …")
    for name, ndim in zip(required, (4, 2, 2, 2, 2)):
        if state[name].ndim != ndim:
            raise ClipError(f"the checkpoint does not fit CLIP's layout: {name} has {state[name].ndim} dimensions, "
                            f"not {ndim}")
    width, _, _, patch = state["visual.conv1.weight"].shape
    if width % 64 or width in (1280, 1408, 1664):
        raise ClipError(f"an image tower of width {width} has heads of another width than 64, which no shape tells "
                        "(OpenCLIP's ViT-H, -g, -bigG); ViT-B and ViT-L work here")
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    context, vocab, text_width = 0, 0, 0
    if has_text:
        context, (vocab, text_width) = len(state["positional_embedding"]), state["token_embedding.weight"].shape
    return dict(embed_dim=state["visual.proj"].shape[1], image_resolution=grid * patch,
                vision_layers=_count_layers(state, "visual.transformer.resblocks."), vision_width=width,
                vision_patch_size=patch, context_length=context, vocab_size=vocab, transformer_width=text_width,
                transformer_heads=text_width // 64, transformer_layers=_count_layers(state, "transformer.resblocks."))


def _count_layers(state: dict[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix):].split(".")[0] for name in state if name.startswith(prefix)})


def _load_strictly(model: CLIP, state: dict[str, Tensor]) -> None:
    expected = model.state_dict()
    wrong = [f"{title} {', '.join(sorted(names)[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
             for title, names in (
                 ("missing keys", set(expected) - set(state)),
                 ("unexpected keys", set(state) - set(expected)),
                 ("wrong shape of", {n for n in set(state) & set(expected) if state[n].shape != expected[n].shape}))
             if names]
    if wrong:
        raise ClipError(f"the checkpoint does not fit CLIP's layout: {'; '.join(wrong)}")
    model.load_state_dict(state, assign=True)


def resize_positional_embedding(embedding: Tensor, image_size: int, patch_size: int) -> Tensor:
    """Bicubic interpolation of [1 + grid², width] to another image size; CLS's row stays as it is."""
    if image_size <= 0 or image_size % patch_size:
        raise ClipError(f"image size {image_size} is no multiple of the patch size {patch_size}")
    grid = round((len(embedding) - 1) ** 0.5)
    patches = embedding[1:].t().reshape(1, -1, grid, grid)
    patches = F.interpolate(patches, size=(image_size // patch_size,) * 2, mode="bicubic", antialias=True,
                            align_corners=False)
    return torch.cat([embedding[:1], patches.flatten(2)[0].t()])
