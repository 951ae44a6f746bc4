"""From a configuration to the student, its teacher and the optimiser."""

from __future__ import annotations

import logging
from collections import Counter
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from clip.model import CLIP
from utils.data import ViewLoader
from utils.errors import InputError
from utils.utils import Tunable, setup_lafter_training_utils, trainable_parameters

from .alignment import empty_alignment, fit_alignment
from .lafter import LaFTer
from .lafter_multilayer import MultiLayerLaFTer
from .prompts import token_prompts
from .teacher import Teacher
from .training import Training

log = logging.getLogger(__name__)

TRAINERS = {"LaFTer": LaFTer, "MultiLayerLaFTer": MultiLayerLaFTer}


def build_student(cfg: CfgNode, clip_model: CLIP, classifier: Tensor | None, num_classes: int,
                  plain_loader: ViewLoader | None) -> Tunable:
    """The model that TRAINER.NAME asks for, its prompts started as PROMPT_INIT says, its stages read as ALIGN says.

    `plain_loader` gives the training images' weak views: `tokens` looks at PROMPT_INIT_IMAGES of them, ALIGN at all.
    None for a model whose state is loaded afterwards.
    """
    torch.manual_seed(cfg.SEED)
    multi_layer = cfg.TRAINER.NAME == "MultiLayerLaFTer"
    prompts = None
    if cfg.PROMPT_INIT == "tokens":
        num = cfg.MULTI_LAYER_PROMPT.NUM if multi_layer else cfg.PROMPT_NUM
        images = sample_images(plain_loader, cfg.PROMPT_INIT_IMAGES, cfg.SEED).to(clip_model.visual.proj.device)
        prompts = token_prompts(clip_model, images, num, cfg.SEED)
        prompts = prompts if multi_layer else prompts[0]
    model = TRAINERS[cfg.TRAINER.NAME](clip_model, classifier, num_classes, cfg, prompts)
    if multi_layer and cfg.MULTI_LAYER_PROMPT.ALIGN == "linear":
        model.alignment = (empty_alignment(model) if plain_loader is None else
                           fit_alignment(model, plain_loader, cfg.MULTI_LAYER_PROMPT.ALIGN_RIDGE))
    return model


def sample_images(loader: ViewLoader, count: int, seed: int) -> Tensor:
    """Weak views [count, 3, r, r] of a seeded draw of the loader's images, fewer where there are fewer."""
    order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(seed))[:count]
    batch = loader.load(order.tolist())
    if "weak" not in batch:
        raise InputError(f"none of the {len(order)} images that prompts start from could be read: "
                         f"{batch['unreadable'][0]}")
    return batch["weak"]


def training_settings(cfg: CfgNode) -> SimpleNamespace:
    """The configuration in the names that `setup_lafter_training_utils` reads."""
    return SimpleNamespace(
        lr=cfg.OPTIM.LR, epochs=cfg.OPTIM.MAX_EPOCH, scheduler=cfg.OPTIM.LR_SCHEDULER, optimizer=cfg.OPTIM.NAME,
        weight_decay=cfg.OPTIM.WEIGHT_DECAY, decay_layernorm=cfg.OPTIM.DECAY_LAYERNORM, momentum=cfg.OPTIM.MOMENTUM,
        warmup_epochs=cfg.OPTIM.WARMUP_EPOCH, warmup_type=cfg.OPTIM.WARMUP_TYPE, warmup_lr=cfg.OPTIM.WARMUP_CONS_LR,
        scheduler_epochs=list(cfg.OPTIM.STEPSIZE), scheduler_gamma=cfg.OPTIM.GAMMA,
        adapter_lr_scale=cfg.OPTIM.ADAPTER_LR_SCALE, fusion_lr_scale=cfg.OPTIM.FUSION_LR_SCALE,
        label_smoothing=cfg.OPTIM.LABEL_SMOOTHING)


def build_training(cfg: CfgNode, clip_model: CLIP, model: Tunable, classifier: Tensor | None,
                   identity: dict[str, object]) -> tuple[Training, nn.Module]:
    """(everything that training changes, the classification loss)."""
    optimizer, scheduler, criterion = setup_lafter_training_utils(training_settings(cfg), model)
    batch, batches = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.ACCUMULATE
    log.info("a step of the optimiser sees %d images%s", batch * batches,
             f": {batches} batches of {batch} (OPTIM.ACCUMULATE)" if batches > 1 else "")
    teacher = None
    if cfg.TRAIN.SUPERVISION == "pseudo":
        teacher = Teacher(clip_model, classifier, cfg.PSEUDO_LABEL.TEACHER, cfg.PSEUDO_LABEL.EMA_DECAY)
    scaler = torch.amp.GradScaler(model.adapter.weight.device.type, enabled=cfg.MODEL.PRECISION == "fp16")
    return Training(model, teacher, optimizer, scheduler, scaler, identity, cfg.dump()), criterion


def count_parameters(model: Tunable) -> dict[str, int]:
    """Trained parameters by kind, and all parameters of the model as `total`."""
    counts = Counter()
    for parameter, kind in trainable_parameters(model).values():
        counts[kind] += parameter.numel()
    return {**counts, "total": sum(parameter.numel() for parameter in model.parameters())}
