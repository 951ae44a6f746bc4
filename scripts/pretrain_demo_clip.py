"""Pretrain the demo's small CLIP on drawn faces and written captions, from scratch, on a CPU.

    python scripts/pretrain_demo_clip.py [--steps 2400] [--out configs/demo/demo_clip.pt]

The training pictures are all in PRETRAIN styles; the demo's data set is in DEMO styles, which the model never saw:
its zero-shot accuracy there has room for adaptation. The loss is CLIP's symmetric InfoNCE (Radford et al., 2021).
Written: a plain fp16 state dict in OpenAI's key names. The embeddings of words that no caption contains are zero,
so an unknown word says nothing instead of something random. Beside it lies pretrain_log.jsonl: the settings, then
a row each --log-every steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, the project's folder is not there

import clip  # noqa: E402
from clip.model import CLIP  # noqa: E402
from utils.demo_captions import caption  # noqa: E402
from utils.demo_faces import EMOTIONS, draw_face, sample_distribution  # noqa: E402
from utils.demo_styles import FAMILIES, sample_style  # noqa: E402

log = logging.getLogger("pretrain_demo_clip")

SIZES = dict(embed_dim=128, image_resolution=64, vision_layers=12, vision_width=128, vision_patch_size=8,
             context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=3)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
CHUNK = 500


def draw_chunk(job: tuple[int, str, int]) -> tuple[np.ndarray, list[int], list[list[str]]]:
    """(seed, family, captions per face) → CHUNK faces: pixels [n, 64, 64, 3] uint8, labels, captions."""
    seed, family, captions = job
    rng = np.random.default_rng(seed)
    pixels, labels, texts = [], [], []
    for _ in range(CHUNK):
        distribution, style = sample_distribution(rng), sample_style(rng, FAMILIES[family])
        pixels.append(np.asarray(draw_face(rng, distribution, style)))
        labels.append(int(distribution.argmax()))
        texts.append([caption(rng, distribution, style) for _ in range(captions)])
    return np.stack(pixels), labels, texts


def draw_faces(count: int, family: str, seed: int, captions: int = 0) -> tuple[Tensor, Tensor, list[list[str]]]:
    """At least `count` faces of a family, drawn by one process per core: pixels [n, 3, 64, 64], labels [n], captions."""
    jobs = [(seed + i, family, captions) for i in range(math.ceil(count / CHUNK))]
    with multiprocessing.Pool() as pool:
        chunks = list(tqdm(pool.imap(draw_chunk, jobs), total=len(jobs), desc=f"drawing {family} faces"))
    pixels = torch.from_numpy(np.concatenate([chunk[0] for chunk in chunks])).permute(0, 3, 1, 2).contiguous()
    return pixels, torch.tensor([y for chunk in chunks for y in chunk[1]]), [t for chunk in chunks for t in chunk[2]]


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] → fp32 by CLIP's mean and standard deviation."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Normalised pictures, each flipped by chance, the batch shifted by up to 3 pixels, brightness and contrast varied."""
    n = len(pixels)
    flip = torch.rand(n, generator=generator) < 0.5
    pixels = torch.where(flip.view(n, 1, 1, 1), pixels.flip(-1), pixels)
    dy, dx = torch.randint(0, 7, (2,), generator=generator).tolist()
    images = F.pad(normalise(pixels), (3, 3, 3, 3), mode="replicate")[:, :, dy:dy + 64, dx:dx + 64]
    gain, offset = torch.rand(2, n, 1, 1, 1, generator=generator)
    return images * (0.8 + 0.4 * gain) + 0.4 * (offset - 0.5)


def clip_loss(model: CLIP, images: Tensor, tokens: Tensor, patches: Tensor) -> Tensor:
    """Symmetric InfoNCE over the batch; the image tower sees CLS and the chosen patches only."""
    sequence = model.visual.embeddings_patch(images)[:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + patches])]
    image_features = F.normalize(model.visual.forward_after_patch_embeddings(sequence).float(), dim=-1)
    text_features = F.normalize(model.encode_text(tokens).float(), dim=-1)
    logits = model.logit_scale.exp() * image_features @ text_features.t()
    target = torch.arange(len(images))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2


@torch.no_grad()
def image_features(model: CLIP, pixels: Tensor, bf16: bool) -> Tensor:
    """L2-normalised features [n, embed_dim]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        features = torch.cat([model.encode_image(normalise(batch)) for batch in pixels.split(250)])
    return F.normalize(features.float(), dim=-1)


@torch.no_grad()
def class_embeddings(model: CLIP, texts_of_class: Sequence[Sequence[str]]) -> Tensor:
    """One L2-normalised embedding per class [classes, embed_dim]: the mean over its texts."""
    means = [F.normalize(model.encode_text(clip.tokenize(list(texts))), dim=-1).mean(0) for texts in texts_of_class]
    return F.normalize(torch.stack(means), dim=-1)


def zero_shot(model: CLIP, faces: dict[str, tuple[Tensor, Tensor]], bf16: bool) -> dict[str, float]:
    """Top-1 in per cent of `a photo of a {}.` on held-out faces of each family."""
    weights = class_embeddings(model, [[f"a photo of a {emotion}."] for emotion in EMOTIONS])
    return {f"zero_shot_{family}": round(100 * (image_features(model, pixels, bf16) @ weights.t()).argmax(1)
                                         .eq(labels).float().mean().item(), 2)
            for family, (pixels, labels) in faces.items()}


def build_optimizer(model: CLIP, lr: float) -> torch.optim.Optimizer:
    """AdamW; weight decay on the matrices of the blocks only, not on embeddings, gains and biases."""
    decayed = [p for n, p in model.named_parameters() if "resblocks" in n and p.ndim > 1]
    kept = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in kept]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                             lr=lr, betas=(0.9, 0.98), eps=1e-6)


def save(model: CLIP, path: Path) -> None:
    """The state dict in fp16, written to a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    torch.save({name: tensor.half() for name, tensor in model.state_dict().items()}, temporary)
    os.replace(temporary, path)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    pixels, _, captions = draw_faces(args.images, "pretrain", 1_000_000 * (args.seed + 1), args.captions)
    held_out = {family: draw_faces(500, family, 500_000_000 + i * 1000)[:2] for i, family in enumerate(FAMILIES)}
    tokens = torch.stack([clip.tokenize(texts) for texts in tqdm(captions, desc="reading captions")]).int()
    model = CLIP(**SIZES)
    with torch.no_grad():
        unseen = torch.ones(SIZES["vocab_size"], dtype=torch.bool)
        unseen[tokens.unique().long()] = False
        model.token_embedding.weight[unseen] = 0  # their gradient is zero too, so they stay
    optimizer = build_optimizer(model, args.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / args.warmup, 1.0) * 0.5 * (
        1 + math.cos(math.pi * step / args.steps)))
    args.log.parent.mkdir(parents=True, exist_ok=True)
    with args.log.open("w", encoding="utf-8", newline="\n") as rows:
        rows.write(json.dumps({"settings": vars(args) | SIZES, "words": int((~unseen).sum())}, default=str) + "\n")
        grid = (SIZES["image_resolution"] // SIZES["vision_patch_size"]) ** 2
        start, losses = time.perf_counter(), []
        for step in tqdm(range(1, args.steps + 1), desc="training"):
            index = torch.randint(len(pixels), (args.batch,), generator=generator)
            which = torch.randint(args.captions, (args.batch,), generator=generator)
            kept = round(grid * (args.keep if step <= args.keep_until * args.steps else 1))
            patches = torch.randperm(grid, generator=generator)[:kept]
            with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
                loss = clip_loss(model, augment(pixels[index], generator), tokens[index, which].long(), patches)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            model.logit_scale.data.clamp_(max=math.log(100))
            losses.append(loss.item())
            if step % args.log_every == 0 or step == args.steps:
                row = {"step": step, "loss": round(float(np.mean(losses)), 4), "lr": schedule.get_last_lr()[0],
                       "logit_scale": round(model.logit_scale.exp().item(), 2), **zero_shot(model, held_out, args.bf16),
                       "seconds": round(time.perf_counter() - start)}
                rows.write(json.dumps(row) + "\n")
                rows.flush()
                log.info("%s", row)
                losses = []
                save(model, args.out)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).resolve().parent.parent / "configs" / "demo"
    parser.add_argument("--out", type=Path, default=folder / "demo_clip.pt")
    parser.add_argument("--log", type=Path, default=folder / "pretrain_log.jsonl")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--captions", type=int, default=6, help="captions per image")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=200, help="steps of linear warm-up")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the patches that a batch sees")
    parser.add_argument("--keep-until", type=float, default=0.75, help="share of the steps after which it sees all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bf16 autocast")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with sdpa_kernel(SDPBackend.MATH):  # for short sequences in bf16 on a CPU twice as fast as the fused kernel
        train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
