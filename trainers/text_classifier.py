"""Phase 1: a linear classifier trained on texts alone, which then labels images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from tqdm import trange
from yacs.config import CfgNode

from clip.model import CLIP
from utils.data.images import summarise_unreadable
from utils.data.items import Splits
from utils.data.loader import ViewLoader
from utils.metrics import one_sided, score
from utils.report.tables import METHODS
from utils.utils import setup_text_training_utils

from .distributed import bar_settings
from .evaluation import plain_features
from .texts import TextFeatures, tell_same_classes, text_features

log = logging.getLogger(__name__)


def train_text_classifier(texts: TextFeatures, num_classes: int, cfg: CfgNode, device: torch.device) -> Tensor:
    """The weight [classes, embed_dim] of Linear(embed_dim, classes, bias=False) after TEXT.EPOCHS full-batch steps.

    In each step the unit-length text features get Gaussian noise of std TEXT.NOISE_STD, which makes up for the gap
    between texts and images (LaFTer, section 3.1). It is drawn on the device, by whose kind it differs.
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
    features, labels = texts.features.to(device), texts.labels.to(device)
    for _ in trange(cfg.TEXT.EPOCHS, desc="text phase", leave=False, **bar_settings()):
        noise = cfg.TEXT.NOISE_STD * torch.randn_like(features)
        loss = criterion(head(features + noise), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return head.weight.detach()


@dataclass
class TextPhase:
    """What the text phase leaves behind; as it stands here, that of a run without one."""

    classifier: Tensor | None = None  # [classes, embed_dim]
    metrics: dict[str, dict[str, dict]] = field(default_factory=dict)  # by split: of `zero_shot`, `text_classifier`
    references: dict[str, Tensor] = field(default_factory=dict)  # by split: the classes [n] it predicts
    unreadable: list[str] = field(default_factory=list)  # what was said of images that were left out


def text_phase(cfg: CfgNode, splits: Splits, clip_model: CLIP, evaluation: dict[str, ViewLoader]) -> TextPhase:
    """Train the text classifier, and score it and zero-shot on the plain features of the splits to evaluate."""
    num_classes = len(splits.classnames)
    device = clip_model.visual.proj.device
    zero_shot = text_features(clip_model, splits.classnames, "zero_shot", cfg)
    classifiers = {"zero_shot": zero_shot.logit_scale * zero_shot.class_means(num_classes)}
    classifier, texts, labeller = zero_shot.class_means(num_classes), zero_shot, "zero_shot"
    if cfg.TEXT.MODE != "zero_shot":
        labeller = "text_classifier"
        texts = text_features(clip_model, splits.classnames, cfg.TEXT.MODE, cfg)
        classifier = classifiers["text_classifier"] = train_text_classifier(texts, num_classes, cfg, device)
    tell_same_classes(texts.class_means(num_classes), splits.classnames)
    result = TextPhase(classifier.to(device), {split: {} for split in evaluation})
    for split, loader in evaluation.items():
        outputs = plain_features(clip_model, loader, split)
        if outputs["unreadable"]:
            log.warning("%s, left out: %s", split, summarise_unreadable(outputs["unreadable"]))
            result.unreadable += outputs["unreadable"]
        result.references[split] = (outputs["features"] @ classifier.cpu().t()).argmax(1)
        for name, weight in classifiers.items():
            probabilities = (outputs["features"] @ weight.cpu().t()).softmax(-1)
            reference = None if name == labeller else result.references[split]  # it agrees with itself
            metrics = score(probabilities, outputs["labels"], outputs.get("distributions"), reference)
            result.metrics[split][name] = metrics
            if "top1" in metrics:
                log.info("%s, %s: %.1f %%", METHODS[name], split, 100 * metrics["top1"])
        if (label := one_sided(result.metrics[split][labeller])) is not None:
            log.warning("%s: the classifier that labels the images predicts nearly all of them as %s", split,
                        splits.classnames[label])
    return result
