"""Transformer blocks in the layout of OpenAI's CLIP, and the transformer that takes prompts stage by stage.

Sequences are batch first: [batch, tokens, width].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import ClipError
from .stages import check_stages, default_stages

PROMPT_MODES = ("append", "replace")
HAS_ONEDNN = torch.backends.mkldnn.is_available()  # asked here once: a compiler cannot look into the question


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in fp32, whatever the precision around it and of its own weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()  # themselves as a rule: fp32 already
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [batch, tokens, in] · weightᵀ [in, out] + bias.

    On a CPU in fp32 it is written as a convolution over single tokens: for that torch goes to oneDNN, which uses the
    widest vectors of any make of processor. F.linear goes to MKL, whose products took twice as long on an AMD EPYC
    (torch 2.14), forwards and backwards.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not HAS_ONEDNN:
        return F.linear(x, weight, bias)
    y = F.conv2d(x[:, None].permute(0, 3, 1, 2), weight[:, :, None, None], bias)  # [batch, out, 1, tokens], no copies
    return y.permute(0, 2, 3, 1).squeeze(1)  # an index in its place would cost a copy in the backward pass


class Linear(nn.Linear):
    """As nn.Linear, for [batch, tokens, width], through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU that OpenAI's weights were trained with."""

    SLOPE = 1.702

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.SLOPE * x)


class Attention(nn.Module):
    """Multi-head self-attention with nn.MultiheadAttention's parameter names."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, cls_only: bool = False) -> Tensor:
        """[batch, tokens, width] → the same; with `cls_only` what the first token makes of them all,
        [batch, 1, width], without a mask."""
        width = x.shape[-1]
        if cls_only:
            q = linear(x[:, :1], self.in_proj_weight[:width], self.in_proj_bias[:width])
            kv = linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
            parts = (q, *kv.split(width, dim=-1))
        else:
            parts = linear(x, self.in_proj_weight, self.in_proj_bias).split(width, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)  # [batch, heads, tokens, 64]
        y = attend(q, k, v, attn_mask)
        return self.out_proj(y.transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention of [batch, heads, tokens, 64] each.

    Goes through torch's own, except for half precision on a CPU: there the fused kernel's backward pass took four
    times as long as the products written out (torch 2.15, bf16, 50 to 100 tokens).
    """
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ v


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, quick_gelu: bool = True):
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = nn.Sequential(OrderedDict(
            c_fc=Linear(width, 4 * width),
            gelu=QuickGELU() if quick_gelu else nn.GELU(),
            c_proj=Linear(4 * width, width),
        ))
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, cls_only: bool = False) -> Tensor:
        """Tokens [batch, tokens, width] → the same; with `cls_only` the first one alone, at a sixth of the cost."""
        x = (x[:, :1] if cls_only else x) + self.attn(self.ln_1(x), attn_mask, cls_only)
        return x + self.mlp(self.ln_2(x))

    @torch.no_grad()
    def fold_gelu(self) -> None:
        """Where the activation is QuickGELU, put its factor into the weights before and after it: as silu(1.702 x) /
        1.702 it is one operation that keeps one tensor for its slope, instead of three that keep as many."""
        if isinstance(self.mlp.gelu, QuickGELU):
            self.mlp.gelu = nn.SiLU()
            self.mlp.c_fc.weight *= QuickGELU.SLOPE
            self.mlp.c_fc.bias *= QuickGELU.SLOPE
            self.mlp.c_proj.weight /= QuickGELU.SLOPE


class Transformer(nn.Module):
    """A stack of blocks; `attn_mask` is additive, [tokens, tokens], cut to the length of the input."""

    def __init__(self, width: int, layers: int, heads: int, attn_mask: Tensor | None = None, quick_gelu: bool = True):
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.ModuleList(ResidualAttentionBlock(width, heads, quick_gelu) for _ in range(layers))
        self.checkpoint = False  # True: keep only each block's input for the backward pass, and compute it again there
        self.register_buffer("attn_mask", attn_mask, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """CLIP's own initialisation: residual branches shrink with depth."""
        std = self.width ** -0.5
        for block in self.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=std)
            nn.init.normal_(block.attn.out_proj.weight, std=std * (2 * self.layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=std * (2 * self.layers) ** -0.5)

    def _mask(self, x: Tensor) -> Tensor | None:
        tokens = x.shape[1]
        return None if self.attn_mask is None else self.attn_mask[:tokens, :tokens].to(x.dtype)

    def _run_block(self, layer: int, x: Tensor, cls_only: bool = False) -> Tensor:
        block, mask = self.resblocks[layer], self._mask(x)
        if self.checkpoint and torch.is_grad_enabled():
            # nothing in a block is random, and asking a GPU's generator for its state would wait for the GPU
            return checkpoint(block, x, mask, cls_only, use_reentrant=False, preserve_rng_state=False)
        return block(x, mask, cls_only)

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(self.layers):
            x = self._run_block(layer, x)
        return x


class MultiLayerTransformer(Transformer):
    """A transformer whose layers form stages; each stage may get its own prompt tokens at its start.

    `stage_boundaries` is a list of lists of 0-based layer indices: contiguous, in order, every layer once
    (`clip.stages.default_stages` if not given).
    """

    def __init__(self, width: int, layers: int, heads: int, attn_mask: Tensor | None = None,
                 stage_boundaries: Sequence[Sequence[int]] | None = None, quick_gelu: bool = True):
        super().__init__(width, layers, heads, attn_mask, quick_gelu)
        self.stage_boundaries = check_stages(stage_boundaries or default_stages(layers), layers)

    @property
    def num_stages(self) -> int:
        return len(self.stage_boundaries)

    def _inject_prompt_at_stage(self, x: Tensor, stage_prompt: Tensor, replaced: int = 0) -> Tensor:
        """Put `stage_prompt` [1 or batch, n, width] after CLS and before all other tokens of x, of which the first
        `replaced` make room."""
        prompt = stage_prompt.to(dtype=x.dtype, device=x.device).expand(len(x), -1, -1)
        cls, _, others = x.split([1, replaced, x.shape[1] - 1 - replaced], dim=1)
        return torch.cat([cls, prompt, others], dim=1)

    def forward(self, x: Tensor, multi_prompts: Sequence[Tensor | None] | None = None,
                prompt_mode: str = "append", cls_only: bool = False) -> tuple[Tensor, list[list[Tensor]]]:
        """Run all stages on x [batch, tokens, width].

        `multi_prompts` has one entry per stage; None injects nothing there. In mode `append` the prompts of
        all stages stay in the sequence; in mode `replace` a stage's prompts take the place of those before
        (VPT-deep, Jia et al., 2022). Returns the final tokens and, for each stage, the CLS feature
        [batch, width] after each of its layers. With `cls_only` the last block computes nothing but CLS, and the
        tokens returned are [batch, 1, width]. Raises ClipError for a wrong count of prompts or mode.
        """
        prompts = [None] * self.num_stages if multi_prompts is None else list(multi_prompts)
        if len(prompts) != self.num_stages:
            raise ClipError(f"{len(prompts)} stage prompts were given for {self.num_stages} stages; give one each")
        if prompt_mode not in PROMPT_MODES:
            raise ClipError(f"unknown prompt mode {prompt_mode!r}; valid: {', '.join(PROMPT_MODES)}")
        present, stage_outputs = 0, []
        for layers, prompt in zip(self.stage_boundaries, prompts):
            if prompt is not None:
                x = self._inject_prompt_at_stage(x, prompt, present if prompt_mode == "replace" else 0)
                present = prompt.shape[1]
            outputs = []
            for layer in layers:
                x = self._run_block(layer, x, cls_only and layer == self.layers - 1)
                outputs.append(x[:, 0])
            stage_outputs.append(outputs)
        return x, stage_outputs

    def stage_inputs(self, x: Tensor) -> list[Tensor]:
        """The tokens [batch, tokens, width] that reach the start of each stage when no prompts are given."""
        inputs = []
        for layers in self.stage_boundaries:
            inputs.append(x)
            for layer in layers:
                x = self._run_block(layer, x)
        return inputs
