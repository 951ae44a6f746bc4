"""The backbone as a run's configuration asks for it, and the machine that it is on."""

from __future__ import annotations

import logging
import platform

import numpy as np
import torch
from yacs.config import CfgNode

import clip
from clip.model import CLIP
from utils.config import image_size, resolve_path
from utils.errors import InputError

from . import distributed

log = logging.getLogger(__name__)


def load_clip(cfg: CfgNode) -> CLIP:
    """The backbone on its device, in its precision, at INPUT.SIZE, with its stages."""
    device = choose_device(cfg.DEVICE)
    backbone = cfg.MODEL.BACKBONE
    name = find_backbone(backbone.NAME)
    model, _ = clip.load(name, device, cfg.MODEL.DOWNLOAD_ROOT or None, precision=cfg.MODEL.PRECISION,
                         image_size=image_size(cfg), quick_gelu=backbone.QUICK_GELU,
                         stage_boundaries=cfg.MULTI_LAYER_PROMPT.STAGES or None)
    for key, meant in (("PIXEL_MEAN", model.source.pixel_mean), ("PIXEL_STD", model.source.pixel_std)):
        if not np.allclose(cfg.INPUT[key], meant, rtol=0, atol=1e-3):
            log.warning("%s was trained on images of another INPUT.%s than %s: set it to %s", backbone.NAME, key,
                        list(cfg.INPUT[key]), list(meant))
    return model.requires_grad_(False)


def find_backbone(name: str) -> str:
    """What clip.load takes: a model's name, or the path of a checkpoint from here or from the project's folder.

    Raises InputError where `name` is neither; nothing is read or downloaded.
    """
    if name in clip.available_models():
        return name
    path = resolve_path(name)
    if not path.exists():
        raise InputError(f"unknown backbone {name!r}: it is none of {', '.join(clip.available_models())}, and there is "
                         f"no checkpoint {path}")
    return str(path)


def choose_device(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA, else MPS, else the CPU. Raises InputError for one that is not here."""
    if name == "auto" and distributed.world_size() > 1 and torch.cuda.is_available():
        name = f"cuda:{distributed.local_rank()}"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises either, depending on how it was built
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try --device cpu") from error


def environment(clip_model: CLIP) -> dict[str, object]:
    """What a reader needs to repeat the run's numbers."""
    device = clip_model.visual.proj.device
    return {"python": platform.python_version(), "torch": torch.__version__, "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads()}
