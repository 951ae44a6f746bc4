"""What a run is refused for before work begins: keys, files, and labels that are not there."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from utils.config import image_size, resolve_path
from utils.data.items import UNKNOWN, Splits
from utils.data.views import build_views
from utils.datasets.reading import existing
from utils.errors import InputError
from utils.runs.checkpoint import find_checkpoint
from utils.runs.identity import identify
from utils.runs.record import Run, dataset_name, run_folder
from utils.runs.tensorboard import check_tensorboard

from . import distributed
from .build import find_backbone
from .texts import read_descriptions


def check_pseudo_labels(cfg: CfgNode) -> None:
    """InputError for keys of PSEUDO_LABEL that the others leave without effect, or that contradict them."""
    own, dual = cfg.PSEUDO_LABEL, cfg.DUAL_TASK.ENABLED
    if own.PRIOR and own.CALIBRATION != "balance":
        raise InputError("PSEUDO_LABEL.PRIOR is for PSEUDO_LABEL.CALIBRATION balance alone, and that is "
                         f"{own.CALIBRATION}: leave it out")
    if own.SOFT and not dual:
        raise InputError("PSEUDO_LABEL.SOFT is about the distributions of a dual task: add --dual_task or leave it out")
    if own.FAIRNESS and dual:
        raise InputError("PSEUDO_LABEL.FAIRNESS makes the mean prediction uniform, and a dual task learns how much of "
                         "each emotion images evoke: leave it out")
    asked = {"WEIGHT": own.WEIGHT != "none", "SHARE": own.SHARE < 1, "FAIRNESS": own.FAIRNESS, "SOFT": own.SOFT}
    if cfg.TRAIN.SUPERVISION == "labels" and any(asked.values()):
        raise InputError(f"PSEUDO_LABEL.{next(key for key, value in asked.items() if value)} is about pseudo-labels, "
                         "and TRAIN.SUPERVISION is labels: leave it out")


def check_inputs(cfg: CfgNode) -> None:
    """InputError or FileNotFoundError for a backbone, views or a file of the configuration that cannot be had, and for
    keys that contradict one another."""
    check_pseudo_labels(cfg)
    find_backbone(cfg.MODEL.BACKBONE.NAME)
    build_views(image_size(cfg) or 224, cfg.INPUT.TRANSFORMS, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD,
                cfg.INPUT.INTERPOLATION)
    if cfg.DATASET.SPLIT_FILE:
        existing("split file", Path(cfg.DATASET.SPLIT_FILE), mend="correct DATASET.SPLIT_FILE")


def check_labels(cfg: CfgNode, splits: Splits) -> None:
    """InputError for training images without the labels that TRAIN.SUPERVISION asks for."""
    missing = sum(item.label == UNKNOWN for item in splits.train)
    if missing and cfg.TRAIN.SUPERVISION == "labels" and not cfg.TRAIN.SKIP:
        raise InputError(f"TRAIN.SUPERVISION is labels, but {missing} of the {len(splits.train)} training images have "
                         "none: put each in a folder named after its class, or tune without labels, which takes the "
                         "text phase (no --direct_dualtask, TRAIN.SUPERVISION pseudo)")


def check_training(cfg: CfgNode) -> None:
    """InputError or FileNotFoundError for texts, a checkpoint or a package that are not there, and for a folder of the
    run that holds another one."""
    if cfg.LOG.TENSORBOARD:
        check_tensorboard()
    if not cfg.TEXT.SKIP:
        if cfg.DATASET.TEXT_FEATURES:
            existing("DATASET.TEXT_FEATURES", resolve_path(cfg.DATASET.TEXT_FEATURES), mend="give the path of its .npz")
        elif cfg.TEXT.MODE == "lafter":
            read_descriptions(cfg.DATASET.DESCRIPTIONS)
    if cfg.RESUME not in ("", "auto"):
        find_checkpoint(Path(cfg.RESUME))
    folder = run_folder(cfg, dataset_name(cfg))
    if folder.exists():
        Run(folder, resume=bool(cfg.RESUME), passive=not distributed.is_main()).check(identify(cfg))
