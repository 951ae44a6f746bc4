"""Phase 1: a linear classifier trained on texts alone, which then labels images."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from tqdm import trange
from yacs.config import CfgNode

from utils.utils import setup_text_training_utils

from .distributed import bar_settings
from .texts import TextFeatures

log = logging.getLogger(__name__)


def train_text_classifier(texts: TextFeatures, num_classes: int, cfg: CfgNode, device: torch.device) -> Tensor:
    """The weight [classes, embed_dim] of Linear(embed_dim, classes, bias=False) after TEXT.EPOCHS full-batch steps.

    In each step the unit-length text features get Gaussian noise of std TEXT.NOISE_STD, which makes up for the gap
    between texts and images (LaFTer, section 3.1). The noise is drawn on the CPU: the same on every device.
    With TEXT.EPOCHS 0 it is the class means of the texts: a weight that no step has changed would be random.
    """
    if not cfg.TEXT.EPOCHS:
        log.info("TEXT.EPOCHS 0: the text classifier is the mean of each class's texts, untrained")
        return texts.class_means(num_classes).to(device)
    torch.manual_seed(cfg.SEED)
    head = nn.Linear(texts.features.shape[1], num_classes, bias=False).to(device)
    settings = SimpleNamespace(lr=cfg.TEXT.LR, epochs=cfg.TEXT.EPOCHS, scheduler=cfg.OPTIM.LR_SCHEDULER,
                               weight_decay=cfg.OPTIM.WEIGHT_DECAY, optimizer=cfg.OPTIM.NAME,
                               label_smoothing=cfg.TEXT.LABEL_SMOOTHING)
    optimizer, scheduler, criterion = setup_text_training_utils(settings, head)
    labels = texts.labels.to(device)
    for _ in trange(cfg.TEXT.EPOCHS, desc="text classifier", leave=False, **bar_settings()):
        noise = cfg.TEXT.NOISE_STD * torch.randn(texts.features.shape)
        loss = criterion(head((texts.features + noise).to(device)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return head.weight.detach()
