"""Finding, downloading and loading CLIP checkpoints, and the image transform that belongs to them."""

from __future__ import annotations

import hashlib
import http.client
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener, getproxies, proxy_bypass

import torch
from PIL import Image
from tqdm import tqdm

from .checkpoint import ARCHIVE, Checkpoint, read_checkpoint, weights_hash
from .errors import ClipError
from .model import CLIP, Source, build_model
from .model_config import CLIP_MEAN, CLIP_STD
from .precision import choose_precision

if TYPE_CHECKING:
    from torchvision import transforms

__all__ = ["CLIP_MEAN", "CLIP_STD", "available_models", "download", "image_transform", "load", "weights_hash"]

log = logging.getLogger(__name__)

SOURCE = "https://openaipublic.azureedge.net/clip/models"  # /<SHA-256>/<file>
MODELS = {
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt"),
}
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
ACTIVATION = {True: "QuickGELU", False: "the plain GELU"}
CHUNK = 1 << 18


def available_models() -> list[str]:
    """The names that `load` knows: OpenAI's four vision transformers."""
    return list(MODELS)


def load(name_or_path: str | Path, device: str | torch.device = "cpu", download_root: str | Path | None = None, *,
         precision: str = "fp32", image_size: int | None = None,
         stage_boundaries: Sequence[Sequence[int]] | None = None,
         quick_gelu: bool | None = None, fold_gelu: bool = False) -> tuple[CLIP, transforms.Compose]:
    """A CLIP in evaluation mode and the transform for its images.

    `name_or_path` is one of `available_models()`, downloaded once to `download_root` (~/.cache/clip), or a
    checkpoint: a file or a folder, in any form that `read_checkpoint` knows. `precision`: fp32, fp16, bf16, or auto,
    which is bf16 where the device multiplies it fast, else fp32.
    `image_size` in pixels, if not the checkpoint's. `quick_gelu=False` is for weights trained with the plain GELU,
    as OpenCLIP's own are; None takes what the checkpoint tells, else QuickGELU, and a line of the log says which.
    `fold_gelu` makes QuickGELU cheaper, see `CLIP.fold_gelu`.
    The model's `source` tells where its weights come from. Raises FileNotFoundError for a missing file, ClipError
    for an unknown name, a failed download, and a file that is damaged or does not fit.
    """
    checkpoint = read_checkpoint(_find_checkpoint(name_or_path, Path(download_root or "~/.cache/clip").expanduser()))
    path, mean, std = checkpoint.path, checkpoint.settings.pixel_mean, checkpoint.settings.pixel_std
    try:
        model = build_model(checkpoint.state, image_size=image_size, stage_boundaries=stage_boundaries,
                            quick_gelu=_choose_activation(checkpoint, quick_gelu))
    except ClipError as error:
        raise ClipError(f"{path}: {error}") from error
    if fold_gelu:
        model.fold_gelu()
    model.source = Source(path, checkpoint.form, _official_name(name_or_path, checkpoint),
                          weights_hash(checkpoint.state), mean, std)
    if not model.has_text:
        log.info("%s is an image tower without a text tower: without DATASET.TEXT_FEATURES it serves no text phase, no "
                 "zero-shot and no label-free pseudo-labels", path)
    precision = choose_precision(torch.device(device)) if precision == "auto" else precision
    return model.set_precision(precision).to(device), image_transform(model.visual.input_resolution, mean, std)


def _choose_activation(checkpoint: Checkpoint, wanted: bool | None) -> bool:
    """Whether it is QuickGELU: what is wanted, else what the checkpoint tells, else True. One line says which."""
    path, form, (told, told_by, *_) = checkpoint.path, checkpoint.form, checkpoint.settings
    if wanted is not None and told is not None and wanted != told:
        log.warning("%s (%s): %s is used, as MODEL.BACKBONE.QUICK_GELU %s says, but %s says %s", path, form,
                    ACTIVATION[wanted], wanted, told_by, ACTIVATION[told])
    elif wanted is not None:
        log.info("%s (%s): %s, as MODEL.BACKBONE.QUICK_GELU %s says", path, form, ACTIVATION[wanted], wanted)
    elif told is not None:
        log.info("%s (%s): %s, as %s says", path, form, ACTIVATION[told], told_by)
    else:
        log.info("%s (%s): %s is assumed, as nothing beside it tells another; weights trained with the plain GELU, as "
                 "OpenCLIP's own, need MODEL.BACKBONE.QUICK_GELU False", path, form, ACTIVATION[True])
    return wanted if wanted is not None else told is not False


def _official_name(name_or_path: str | Path, checkpoint: Checkpoint) -> str:
    """Which of OpenAI's files this is, wherever it lies; "" for another."""
    if str(name_or_path) in MODELS:
        return str(name_or_path)
    if checkpoint.form != ARCHIVE:  # as all of them are
        return ""
    found = file_sha256(checkpoint.path)
    return next((name for name, (sha256, _) in MODELS.items() if sha256 == found), "")


def image_transform(size: int, mean: Sequence[float] = CLIP_MEAN,
                    std: Sequence[float] = CLIP_STD) -> transforms.Compose:
    """PIL image → normalised tensor [3, size, size]: bicubic on the short side, centre crop."""
    from torchvision import transforms  # only here: the import takes a second

    return transforms.Compose([
        _to_rgb,
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ])


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _find_checkpoint(name_or_path: str | Path, root: Path) -> Path:
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if name in MODELS:
        sha256, file = MODELS[name]
        target = root / file
        if target.is_file():
            if file_sha256(target) == sha256:
                return target
            log.warning("%s is damaged (its SHA-256 is not the published one); downloading it again", target)
        return download(f"{SOURCE}/{sha256}/{file}", sha256, target)
    if path.exists():
        return path
    if path.suffix in CHECKPOINT_SUFFIXES:
        raise FileNotFoundError(f"there is no checkpoint {path}")
    raise ClipError(f"unknown model {name!r}; valid: {', '.join(MODELS)}, or the path of a checkpoint, a file "
                    "or a folder")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, sha256: str, target: str | Path, *, timeout: float = 30.0, attempts: int = 3) -> Path:
    """Fetch `url` to `target` and check its SHA-256; nothing but the right bytes ever has the final name.

    The bytes gather in `<target>.part`, and a later attempt or call goes on where the last one stopped.
    `timeout` is in seconds without any byte. HTTP proxies are taken from the environment. Raises ClipError with the
    reason and what to do without a network, and for a SOCKS proxy, which urllib cannot speak to.
    """
    target = Path(target)
    _refuse_socks(url, target)
    part = target.with_name(target.name + ".part")
    failure: object = None
    log.info("downloading %s to %s", url, target)
    for _ in range(attempts):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            resumed = _fetch(url, part, timeout)
            found = file_sha256(part)
            if found == sha256:
                os.replace(part, target)
                return target
            part.unlink()
        except (OSError, http.client.HTTPException) as error:
            failure = error
            if isinstance(error, HTTPError) and error.code < 500:
                break  # asking again changes nothing
        else:
            failure = f"the SHA-256 of what came is {found}, but {sha256} was expected"
            if not resumed:
                break
    raise ClipError(f"could not download {url} ({failure}). Without a network: fetch this file elsewhere and put it "
                    f"at {target}, or give the path of a checkpoint in place of the model's name")


def _refuse_socks(url: str, target: Path) -> None:
    """ClipError where the proxy for `url` is a SOCKS proxy: urllib would take it for an HTTP proxy and hear nothing."""
    parts = urlsplit(url)
    proxy = urlsplit(getproxies().get(parts.scheme, ""))
    if proxy.scheme.startswith("socks") and not proxy_bypass(parts.netloc):
        server = proxy.netloc.rpartition("@")[2]  # without the password
        raise ClipError(f"could not download {url}: {parts.scheme}_proxy is the SOCKS proxy {proxy.scheme}://{server}, "
                        f"which Python's downloads cannot use; set {parts.scheme}_proxy to an HTTP proxy (many SOCKS "
                        f"programs offer one on a port of its own), or fetch this file by hand and put it at {target}")


def _fetch(url: str, part: Path, timeout: float) -> bool:
    """Bring `part` to its full length; True if bytes of an earlier attempt were kept."""
    start = part.stat().st_size if part.exists() else 0
    try:
        request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
        response = build_opener().open(request, timeout=timeout)  # urlopen would keep the first call's proxies
    except HTTPError as error:
        if start and error.code == 416:
            return True  # nothing is left to fetch; the SHA-256 decides
        raise
    with response:
        resumed = response.status == 206
        if not resumed:
            start = 0  # the server sends the whole file
        sent = response.headers["Content-Range"] or ""
        if resumed and sent and not sent.startswith(f"bytes {start}-"):
            part.unlink()
            raise ConnectionError(f"asked for bytes from {start:,} on, but the server sent {sent}")
        length = response.headers["Content-Length"]
        total = start + int(length) if length else None
        with open(part, "ab" if resumed else "wb") as file, \
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
            while chunk := response.read1(CHUNK):
                start += file.write(chunk)
                bar.update(len(chunk))
    if total is not None and start < total:
        raise ConnectionError(f"the connection ended after {start:,} of {total:,} bytes")
    return resumed
