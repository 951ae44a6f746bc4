"""What training minimises: the parts of the loss, by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.emotion_circle import class_distances, strategy1
from utils.errors import InputError
from utils.losses import DualTaskLoss, MultiStageConsistencyLoss, fairness

from .LaFTer import Prediction

PARTS = ("cross_entropy", "dual_task", "consistency", "fairness")  # every name of a part of the loss


def generated_distributions(cfg: CfgNode, classnames: list[str]) -> Tensor | None:
    """The distributions [classes, classes] that belong to the labels; None where no dual task asks for them, or it
    learns annotated ones. Raises InputError where DATASET.CIRCLE is missing or a class is not on it."""
    annotated = cfg.DATASET.DISTRIBUTION_STRATEGY != "strategy1" and cfg.TRAIN.SUPERVISION == "labels"
    if not cfg.DUAL_TASK.ENABLED or annotated:
        return None
    if not cfg.DATASET.CIRCLE:
        raise InputError("a dual task generates distributions on an emotion circle: set DATASET.CIRCLE to the emotions "
                         "in their order around it, such as \"[anger, disgust, fear, sadness, surprise, joy]\"")
    return strategy1(torch.arange(len(classnames)), class_distances(classnames, cfg.DATASET.CIRCLE),
                     cfg.DATASET.SIGMA_CONF, cfg.DATASET.EPSILON)


class Objective:
    """Classification, by cross-entropy or, as a dual task, together with the emotion distribution; and, for a model
    with several stages, their consistency.

    Args:
        criterion: the cross-entropy of `setup_lafter_training_utils`.
        cfg: DUAL_TASK.*, DATASET.DISTRIBUTION_STRATEGY, DATASET.CIRCLE, MULTI_LAYER_PROMPT.CONSISTENCY,
            PSEUDO_LABEL.FAIRNESS, PSEUDO_LABEL.SOFT.
        classnames: the classes in order; with DUAL_TASK each must stand on the circle, unless `annotated`
            distributions are learnt with true labels.
    """

    def __init__(self, criterion: nn.Module, cfg: CfgNode, classnames: list[str]):
        self.criterion = criterion
        self.consistency = MultiStageConsistencyLoss(cfg.MULTI_LAYER_PROMPT.CONSISTENCY)
        self.dual_task = None
        if cfg.DUAL_TASK.ENABLED:
            self.dual_task = DualTaskLoss(cfg.DUAL_TASK.LAMBDA, cfg.DUAL_TASK.TEMPERATURE)
        self.generated = generated_distributions(cfg, classnames)  # on the device of the labels once it knows it
        self.fairness, self.soft = cfg.PSEUDO_LABEL.FAIRNESS, cfg.PSEUDO_LABEL.SOFT

    def __call__(self, prediction: Prediction, labels: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The parts of the loss, scalars; their sum is minimised. `labels` [batch]: true or pseudo.

        In `batch`: where there is one, the `weight` [batch] of each image in what it learns from its label; for
        fairness, `mean_prediction` [batch, classes], in each row that of the whole batch; for soft labels, the
        teacher's `probabilities` [batch, classes].
        """
        logits, weights = prediction.logits, batch.get("weight")
        if self.dual_task:
            parts = {"dual_task": self.dual_task(logits, labels, self._distributions(labels, batch), weights)}
        elif weights is None:
            parts = {"cross_entropy": self.criterion(logits, labels)}
        else:
            losses = F.cross_entropy(logits, labels, label_smoothing=self.criterion.label_smoothing, reduction="none")
            parts = {"cross_entropy": (weights * losses).mean()}
        if self.fairness:
            parts["fairness"] = self.fairness * fairness(logits, batch["mean_prediction"])
        if len(prediction.stage_logits) > 1 and self.consistency.alpha:
            parts["consistency"] = self.consistency(prediction.stage_logits)
        return parts

    def _distributions(self, labels: Tensor, batch: dict[str, Tensor]) -> Tensor:
        if self.generated is not None:
            if self.generated.device != labels.device:
                self.generated = self.generated.to(labels.device)
            return batch["probabilities"] @ self.generated if self.soft else self.generated[labels]
        if "distribution" not in batch:
            raise InputError("the training images carry no annotated distributions: "
                             "set DATASET.DISTRIBUTION_STRATEGY strategy1")
        return batch["distribution"]
