"""The plain ways that scripts/benchmark.py measures against: what the original program does, written out.

(a) one text at a time at the full length; (b) torchvision's PIL transforms per image in DataLoader workers; (c) a step
with sequences of [tokens, batch, width], nn.MultiheadAttention and a teacher forward in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import clip
from clip.model import CLIP


@torch.no_grad()
def encode_texts_one_by_one(clip_model: CLIP, texts: Sequence[str]) -> Tensor:
    """(a): unit-length features [n, embed_dim], each text alone, padded to the context length."""
    features, device = [], clip_model.visual.proj.device
    for text in texts:
        tokens = clip.tokenize(text, context_length=clip_model.context_length).to(device)
        x = clip_model.token_embedding(tokens) + clip_model.positional_embedding
        x = clip_model.ln_final(clip_model.transformer(x))
        feature = x[:, tokens.argmax(1).item()] @ clip_model.text_projection
        features.append(F.normalize(feature.float(), dim=-1).cpu())
    return torch.cat(features)


class RandomBlur:
    """A Gaussian of σ uniform in [0.1, 2] pixels, on every image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * torch.rand(()).item()))


class PlainImages(Dataset):
    """(b): an image's weak and strong view, by torchvision on PIL images: LaFTer's, the crop bilinear."""

    def __init__(self, paths: Sequence[Path], size: int, mean: Sequence[float], std: Sequence[float]):
        self.paths = paths
        finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        resize = v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC)
        self.weak = v2.Compose([resize, v2.CenterCrop(size), *finish])
        self.strong = v2.Compose([
            v2.RandomResizedCrop(size, scale=(0.2, 1.0)), v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2), RandomBlur(),
            *finish])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[index]) as image:
            image = image.convert("RGB")
        return self.weak(image), self.strong(image)


def plain_loader(paths: Sequence[Path], size: int, mean: Sequence[float], std: Sequence[float], batch: int,
                 workers: int) -> DataLoader:
    return DataLoader(PlainImages(paths, size, mean, std), batch, num_workers=workers, persistent_workers=workers > 0)


class PlainBlock(nn.Module):
    """A block with nn.MultiheadAttention on [tokens, batch, width]."""

    def __init__(self, block: nn.Module, width: int, heads: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, device="meta")
        self.attn.load_state_dict(block.attn.state_dict(), assign=True)  # the very same weights
        self.ln_1, self.ln_2, self.mlp = block.ln_1, block.ln_2, block.mlp
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        wide, narrow = self.mlp.c_fc, self.mlp.c_proj
        hidden = F.linear(self.ln_2(x), wide.weight, wide.bias)
        return x + F.linear(hidden * torch.sigmoid(1.702 * hidden), narrow.weight, narrow.bias)


class PlainStep:
    """(c): LaFTer's step. The encoder's LayerNorms, the prompts and the head train; the student's own are copied.

    Call with the weak and the strong views [batch, 3, r, r]; returns the loss, its gradients done.
    """

    def __init__(self, clip_model: CLIP, classifier: Tensor, prompts: Tensor, adapter: Tensor):
        visual = clip_model.visual
        self.visual, self.classifier = visual, classifier
        width = visual.class_embedding.numel()
        self.blocks = nn.ModuleList(PlainBlock(block, width, width // 64) for block in visual.transformer.resblocks)
        for module in visual.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)
        self.prompts = nn.Parameter(prompts.detach().clone())
        self.adapter = nn.Parameter(adapter.detach().clone())
        norms = [p for p in visual.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW([self.prompts, self.adapter, *norms], lr=1e-8)

    def encode(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        visual = self.visual
        x = visual.conv1(images.to(visual.conv1.weight.dtype)).flatten(2).permute(0, 2, 1)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1) + visual.positional_embedding
        x = visual.ln_pre(x)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts.to(x.dtype).expand(len(x), -1, -1), x[:, 1:]], 1)
        x = x.permute(1, 0, 2)
        for block in self.blocks:
            x = block(x)
        return visual.ln_post(x.permute(1, 0, 2)[:, 0]) @ visual.proj

    def __call__(self, weak: Tensor, strong: Tensor) -> Tensor:
        with torch.no_grad():
            teacher = F.normalize(self.encode(weak).float(), dim=-1)
            labels = (teacher @ self.classifier.t()).argmax(1)
        logits = F.linear(self.encode(strong, self.prompts).float(), self.adapter)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()
