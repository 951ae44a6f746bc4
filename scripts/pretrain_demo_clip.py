"""Pretrain the demo's small CLIP on drawn faces and written captions, from scratch, on a CPU.

    python scripts/pretrain_demo_clip.py [--steps 2400] [--out configs/demo/demo_clip.pt]

The training pictures are all in PRETRAIN styles; the demo's data set is in DEMO styles, which the model never saw:
its zero-shot accuracy there has room for adaptation. The loss is CLIP's symmetric InfoNCE (Radford et al., 2021).
Written: a plain fp16 state dict in OpenAI's key names. The embeddings of words that no caption contains are zero,
so an unknown word says nothing instead of something random. Beside it lies pretrain_log.jsonl: the settings, then
a row each --log-every steps. The zero_shot_demo in the committed log is that of an earlier version of the DEMO
styles, less turned and in focus; the training itself does not depend on them.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, the project's folder is not there

from pretrain_demo.captions import caption  # noqa: E402

import clip  # noqa: E402
from clip.model import CLIP  # noqa: E402
from utils.demo.drawing import draw  # noqa: E402
from utils.demo.faces import EMOTIONS, PROTOTYPES, face_actions, sample_distribution  # noqa: E402
from utils.demo.styles import FAMILIES, sample_style  # noqa: E402

log = logging.getLogger("pretrain_demo_clip")

SIZES = dict(embed_dim=128, image_resolution=64, vision_layers=12, vision_width=128, vision_patch_size=8,
             context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=3)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
CHUNK = 500


@dataclass
class Faces:
    """Pixels [n, 3, 64, 64] uint8, action parameters [n, actions], labels [n], captions (a list per face)."""
    pixels: Tensor
    actions: Tensor
    labels: Tensor
    captions: list[list[str]]


def draw_chunk(job: tuple[int, str, int]) -> tuple[list, list, list, list]:
    """(seed, family, captions per face) → pixels, actions, labels, captions of CHUNK faces."""
    seed, family, captions = job
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(CHUNK):
        distribution, style = sample_distribution(rng), sample_style(rng, FAMILIES[family])
        actions = face_actions(rng, distribution)
        texts = [caption(rng, distribution, style) for _ in range(captions)]
        rows.append((np.asarray(draw(rng, actions, style)), list(actions.values()), distribution.argmax(), texts))
    return tuple(map(list, zip(*rows)))


def draw_faces(count: int, family: str, seed: int, captions: int = 0) -> Faces:
    """At least `count` faces of a family, drawn by all cores."""
    jobs = [(seed + i, family, captions) for i in range(math.ceil(count / CHUNK))]
    with multiprocessing.Pool() as pool:
        chunks = list(tqdm(pool.imap(draw_chunk, jobs), total=len(jobs), desc=f"drawing {family} faces", disable=None))
    pixels, actions, labels, texts = ([row for part in parts for row in part] for parts in zip(*chunks))
    return Faces(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(actions),
                 torch.tensor(np.array(labels)), texts)


def normalise(images: Tensor) -> Tensor:
    """[n, 3, h, w] in 0…255 → fp32 by CLIP's mean and standard deviation."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture in 0…255 gets its own saturation, contrast and brightness; one in four swaps its channels."""
    n = len(images)
    saturation, gain, shift = torch.rand(3, n, 1, 1, 1, generator=generator)
    grey = images.mean(1, keepdim=True)
    images = torch.lerp(grey, images, (1.6 * saturation - 0.2).clamp(0, 1.3))  # one in eight has no colour at all
    swapped = torch.rand(n, 1, 1, 1, generator=generator) < 0.25
    images = torch.where(swapped, images[:, torch.randperm(3, generator=generator)], images)
    return ((images - 128) * (0.6 + 0.7 * gain) + 128 + 80 * (shift - 0.5)).clamp(0, 255)


def augment(pixels: Tensor, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures (normalised) and their actions: recoloured, by chance flipped, turned, zoomed and shifted a little."""
    n = len(pixels)
    turn, zoom_x, zoom_y, shift_x, shift_y = torch.rand(5, n, generator=generator) * 2 - 1
    flip = torch.rand(n, generator=generator) < 0.5
    turn, zoom_x, zoom_y = 0.2 * turn, 0.87 + 0.2 * zoom_x, 0.87 + 0.2 * zoom_y
    mirror = 1 - 2 * flip.float()
    theta = torch.stack([torch.stack([mirror * zoom_x * turn.cos(), -zoom_y * turn.sin(), 0.2 * shift_x], 1),
                         torch.stack([mirror * zoom_x * turn.sin(), zoom_y * turn.cos(), 0.2 * shift_y], 1)], 1)
    grid = F.affine_grid(theta, (n, 3, *pixels.shape[-2:]), align_corners=False)
    images = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    skewed = torch.tensor([name.endswith("skew") for name in PROTOTYPES])
    actions = torch.where(flip.view(n, 1) & skewed, -actions, actions)
    return normalise(recolour(images, generator)), actions


def losses(model: CLIP, reader: nn.Module, images: Tensor, actions: Tensor, tokens: Tensor, patches: Tensor) -> Tensor:
    """(symmetric InfoNCE over the batch, error of the actions) [2]; the image tower sees CLS and `patches` only."""
    sequence = model.visual.embeddings_patch(images)[:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + patches])]
    image_features = model.visual.forward_after_patch_embeddings(sequence)
    error = F.mse_loss(reader(image_features).float(), actions)
    text_features = F.normalize(model.encode_text(tokens).float(), dim=-1)
    logits = model.logit_scale.exp() * F.normalize(image_features.float(), dim=-1) @ text_features.t()
    target = torch.arange(len(images))
    return torch.stack([(F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2, error])


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


def zero_shot(model: CLIP, faces: dict[str, Faces], bf16: bool) -> dict[str, float]:
    """Top-1 in per cent of `a photo of a {}.` on held-out faces of each family."""
    weights = class_embeddings(model, [[f"a photo of a {emotion}."] for emotion in EMOTIONS])
    accuracy = {}
    for family, held_out in faces.items():
        predicted = (image_features(model, held_out.pixels, bf16) @ weights.t()).argmax(1)
        accuracy[f"zero_shot_{family}"] = round(100 * (predicted == held_out.labels).float().mean().item(), 2)
    return accuracy


def build_optimizer(model: CLIP, reader: nn.Module, lr: float) -> torch.optim.Optimizer:
    """AdamW; weight decay on the matrices of the blocks only, not on embeddings, gains and biases."""
    decayed = [p for n, p in model.named_parameters() if "resblocks" in n and p.ndim > 1]
    kept = {id(p) for p in decayed}
    rest = [p for p in [*model.parameters(), *reader.parameters()] if id(p) not in kept]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                             lr=lr, betas=(0.9, 0.98), eps=1e-6)


def save(model: CLIP, path: Path) -> None:
    """The state dict in fp16, written to a temporary name first.

    CLIP does not see how long image features are, but LaFTer's student does: it classifies them unnormalised. These
    features spread over far wider angles than those of a CLIP trained on the web, so shorter ones give its logits a
    usual spread.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    state = model.state_dict()
    state["visual.proj"] = state["visual.proj"] / 8
    torch.save({name: tensor.half() for name, tensor in state.items()}, temporary)
    os.replace(temporary, path)


def build(tokens: Tensor) -> CLIP:
    """A new CLIP, in which words outside `tokens` are zero; their gradient is zero too, so they stay."""
    model = CLIP(**SIZES)
    unseen = torch.ones(SIZES["vocab_size"], dtype=torch.bool)
    unseen[tokens.unique().long()] = False
    with torch.no_grad():
        model.token_embedding.weight[unseen] = 0
    return model


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    faces = draw_faces(args.images, "pretrain", 1_000_000 * (args.seed + 1), args.captions)
    held_out = {family: draw_faces(500, family, 500_000_000 + i * 1000) for i, family in enumerate(FAMILIES)}
    actions = (faces.actions - faces.actions.mean(0)) / faces.actions.std(0)
    captions = tqdm(faces.captions, desc="reading captions", disable=None)
    tokens = torch.stack([clip.tokenize(texts) for texts in captions]).int()
    model, reader = build(tokens), nn.Linear(SIZES["embed_dim"], actions.shape[1])
    optimizer = build_optimizer(model, reader, args.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / args.warmup, 1.0) * 0.5 * (
        1 + math.cos(math.pi * step / args.steps)))
    write_row(args.log, {"settings": vars(args) | SIZES, "words": tokens.unique().numel()}, "w")
    grid, start, history = (SIZES["image_resolution"] // SIZES["vision_patch_size"]) ** 2, time.perf_counter(), []
    for step in tqdm(range(1, args.steps + 1), desc="training", disable=None):
        index = torch.randint(len(tokens), (args.batch,), generator=generator)
        texts = tokens[index, torch.randint(args.captions, (args.batch,), generator=generator)].long()
        kept = round(grid * (args.keep if step <= args.keep_until * args.steps else 1))
        patches = torch.randperm(grid, generator=generator)[:kept]
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            parts = losses(model, reader, *augment(faces.pixels[index], actions[index], generator), texts, patches)
        optimizer.zero_grad()
        parts.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.logit_scale.data.clamp_(max=math.log(100))
        history.append(parts.detach())
        if step % args.log_every == 0 or step == args.steps:
            contrastive, error = torch.stack(history).mean(0).tolist()
            row = {"step": step, "loss": round(contrastive, 4), "action_error": round(error, 4),
                   "lr": schedule.get_last_lr()[0], "logit_scale": round(model.logit_scale.exp().item(), 2),
                   **zero_shot(model, held_out, args.bf16), "seconds": round(time.perf_counter() - start)}
            write_row(args.log, row, "a")
            log.info("%s", row)
            history = []
            save(model, args.out)


def write_row(path: Path, row: dict, mode: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, encoding="utf-8", newline="\n") as rows:
        rows.write(json.dumps(row, default=str) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).resolve().parent.parent / "configs" / "demo"
    parser.add_argument("--out", type=Path, default=folder / "demo_clip.pt")
    parser.add_argument("--log", type=Path, default=folder / "pretrain_log.jsonl")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--captions", type=int, default=6, help="captions per image")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the patches that a batch sees")
    parser.add_argument("--keep-until", type=float, default=0.8, help="share of the steps after which it sees all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bf16 autocast")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with sdpa_kernel(SDPBackend.MATH):  # for short sequences in bf16 on a CPU twice as fast as the fused kernel
        train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
