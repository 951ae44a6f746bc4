"""In which precision a run computes: what MODEL.PRECISION `auto` becomes (clip/precision.py measures the device), and
when bf16 is worth a line."""

from __future__ import annotations

import logging
from pathlib import Path

from yacs.config import CfgNode

from clip.model import CLIP
from clip.precision import choose_precision
from utils.runs.identity import read_identity
from utils.values import with_value

from . import distributed
from .build import choose_device, image_flops

log = logging.getLogger(__name__)
# FLOP of a run, some minutes' work on a CPU, from which the precision is worth a line and the tenth of a second that
# it takes to measure a CPU
WORTH_A_LINE = 1e14


def settle_precision(cfg: CfgNode, folder: Path) -> CfgNode:
    """The configuration with MODEL.PRECISION `auto` replaced by what it becomes.

    That is what the run in `folder` has: it goes on, and is evaluated, as it began. Where there is none yet, it is what
    suits the device; of several processes the first one decides.
    """
    if cfg.MODEL.PRECISION != "auto":
        return cfg
    precision = (read_identity(folder).settings or {}).get("MODEL.PRECISION")
    if precision is None and distributed.is_main():
        precision = choose_precision(choose_device(cfg.DEVICE))
    return with_value(cfg, "MODEL.PRECISION", distributed.broadcast(precision))


def suggest_precision(clip_model: CLIP, cfg: CfgNode, images: int) -> None:
    """A line of the log where a run in fp32 on so many images, each epoch's counted, would be much faster in bf16."""
    visual = clip_model.visual
    long = 3 * images * image_flops(visual) > WORTH_A_LINE
    if long and cfg.MODEL.PRECISION == "fp32" and choose_precision(visual.proj.device) == "bf16":
        log.info("this device multiplies in bf16 much faster than in fp32: MODEL.PRECISION bf16, or auto, shortens the "
                 "run, and rounds the frozen weights")
