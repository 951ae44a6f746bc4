"""Losses beside plain cross-entropy: consistency of stages; classification together with distributions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError


class MultiStageConsistencyLoss(nn.Module):
    """alpha · mean over neighbouring stages of KL(deeper ‖ shallower), each the mean over the batch.

    The deeper stage is the target and gets no gradient. With a single stage the loss is 0.
    """

    def __init__(self, alpha: float = 0.1):
        super().__init__()
        if not alpha >= 0:
            raise InputError(f"the consistency loss has the weight {alpha}; it must not be negative")
        self.alpha = alpha

    def forward(self, stage_logits: Sequence[Tensor]) -> Tensor:
        """Logits [n, classes] of each stage, from shallow to deep → scalar. InputError: wrong shapes."""
        shapes = {tuple(logits.shape) for logits in stage_logits}
        if len(shapes) != 1:
            raise InputError(f"the stages must give logits of one shape [n, classes], not {shapes or 'none'}")
        if len(stage_logits) == 1:
            return 0 * stage_logits[0].sum()
        *shallower, deepest = stage_logits
        log_probs = _log_softmax(torch.stack([*shallower, deepest.detach()]))  # [stages, n, classes]
        divergence = F.kl_div(log_probs[:-1], log_probs[1:].detach(), reduction="sum", log_target=True)
        return divergence * (self.alpha / (len(shallower) * len(deepest)))


def dual_task_target(labels: Tensor, distributions: Tensor, weight: float) -> Tensor:
    """t = (1 − weight) · onehot(label) + weight · distribution, [n, classes].

    Args:
        labels: class indices [n].
        distributions: [n, classes], rows that sum to 1, each the one of its own sample.
        weight: λ in [0, 1].

    Raises InputError for shapes that do not belong together.
    """
    if distributions.ndim != 2 or labels.shape != distributions.shape[:1]:
        raise InputError("a dual task needs labels [n] and distributions [n, classes], not "
                         f"{tuple(labels.shape)} and {tuple(distributions.shape)}")
    onehot = F.one_hot(labels, distributions.shape[1]).to(distributions.dtype)
    return (1 - weight) * onehot + weight * distributions


class DualTaskLoss(nn.Module):
    """Classification and distribution learning in one divergence: KL(t ‖ p), t from `dual_task_target`.

    (1 − λ) · cross-entropy + λ · KL(distribution ‖ p) differs from it only by a term without the logits. So
    the gradients are the same, (p − t) / n for each of n samples; this form is 0 where the prediction is
    perfect.

    A temperature T acts on both sides: p = softmax(logits / T), and t becomes t^(1/T), normalised. The loss
    is multiplied by T², so that its gradient, T · (p − t) / n, keeps its size as T grows (Hinton et al.,
    2015, arXiv 1503.02531).

    Args:
        weight: λ in [0, 1], the distribution's share.
        temperature: T > 0.
    """

    def __init__(self, weight: float = 0.8, temperature: float = 1.0):
        super().__init__()
        if not 0 <= weight <= 1:
            raise InputError(f"the distribution's weight {weight} must lie in [0, 1] (--lambda_weight)")
        if not 0 < temperature < float("inf"):
            raise InputError(f"the dual task's temperature {temperature} must be finite and above 0")
        self.weight, self.temperature = weight, temperature

    def forward(self, logits: Tensor, labels: Tensor, distributions: Tensor, weights: Tensor | None = None) -> Tensor:
        """Logits [n, classes], class indices [n], distributions [n, classes] → scalar, the samples' mean, each times
        its own of `weights` [n] where there are some."""
        if logits.shape != distributions.shape:
            raise InputError("logits and distributions must have one shape [n, classes], not "
                             f"{tuple(logits.shape)} and {tuple(distributions.shape)}")
        target = dual_task_target(labels, distributions, self.weight)
        if self.temperature != 1:
            target = target ** (1 / self.temperature)
            target = target / target.sum(-1, keepdim=True)
        log_probs = _log_softmax(logits / self.temperature)
        target = target.to(log_probs.dtype)
        if weights is not None:
            divergences = F.kl_div(log_probs, target, reduction="none").sum(1)
            return self.temperature ** 2 * (weights * divergences).mean()
        return self.temperature ** 2 * F.kl_div(log_probs, target, reduction="batchmean")


def fairness(logits: Tensor, mean: Tensor) -> Tensor:
    """−mean over the classes of log p̄, p̄ the mean prediction over a batch: least where that is uniform (MUST, Li et
    al., ICLR 2023, arXiv 2206.02967).

    Logits [n, classes] are of n images of the batch, and `mean` is p̄ [classes] of all of it (or [n, classes]: a row for
    each image); the means of what parts of a batch give, weighted by their images, is the value of the whole, and so
    are the gradients: p̄ is linear in each image's prediction.
    """
    mean = mean.detach().clamp(min=1e-8)  # of a class that nobody is given any more
    ratio = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)) / mean
    return 1 - mean.log().mean() - ratio.mean()


def _log_softmax(logits: Tensor) -> Tensor:
    """In fp32 at least: half precision is too coarse for small differences of log-probabilities."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
