"""How much each pseudo-labelled image counts: by the teacher's confidence, its neighbours, its rank in its class."""

from __future__ import annotations

import torch
from torch import Tensor
from yacs.config import CfgNode

from .calibration import confident_temperature

PRODUCTS = 2 ** 26  # of features that are there at a time: 256 MB


class ImageWeights:
    """The weight of each image in the loss, and what it takes from a pass over all of them. Images count by the product
    of two choices of cfg.PSEUDO_LABEL:

    WEIGHT `confidence`: the teacher's probability of the label, so that doubtful labels teach less; DPA (Ali et al.,
    WACV 2025, arXiv 2408.08855) weighs by the like of it, p(label) / max p, of a text and a prototype classifier.
    WEIGHT `neighbours`: how many of the NEIGHBOURS images with the most similar features have the same label, as a
    share; after the neighbourhoods of Ali et al. (2025, arXiv 2507.22075), who also change labels by them.
    SHARE: only the surest images of each class count, this share of them in the first epoch, linearly more in each and
    all in the last, as in self-training with a curriculum per class (Zou et al., ECCV 2018, arXiv 1810.07911).

    Probabilities are softmax(z / T) of the (calibrated) logits z; T makes the mean highest one 0.9 over all images. T,
    and what is sure enough in each class, are found anew at each epoch's end.
    """

    def __init__(self, cfg: CfgNode, epochs: int):
        self.weight, self.share, self.neighbours = cfg.WEIGHT, cfg.SHARE, cfg.NEIGHBOURS
        self.epochs, self.epoch = epochs, -1
        self.nearest = self.temperature = self.least = torch.empty(0)

    def fill(self, features: Tensor, index: Tensor, images: int, classes: int) -> None:
        """Find the neighbours of the images `index` [n] of `images`; features [n, d] of unit length. From then on all
        tensors keep their place in memory."""
        self.temperature = torch.ones((), device=index.device)
        self.least = torch.zeros(classes, device=index.device)
        if self.weight == "neighbours":
            self.nearest = torch.full((images + 1, min(self.neighbours, len(index) - 1)), -1, dtype=torch.int32,
                                      device=index.device)
            self.nearest[index] = index[nearest_rows(features, self.nearest.shape[1])].int()

    def follow(self, logits: Tensor) -> None:
        """Take what the next epoch needs from the (calibrated) logits [n, classes] of all images."""
        self.epoch += 1
        self.temperature.copy_(confident_temperature(logits))
        share = self.share + (1 - self.share) * min(self.epoch / max(self.epochs - 1, 1), 1)
        sure, labels = self.probabilities(logits).max(1)
        self.least.zero_()
        for label in range(logits.shape[1]) if share < 1 else ():
            own = sure[labels == label]
            if len(own):
                self.least[label] = own.quantile(1 - share)

    def probabilities(self, logits: Tensor) -> Tensor:
        """softmax(z / T) [batch, classes] of (calibrated) logits."""
        return (logits / self.temperature).softmax(1)

    def weights(self, logits: Tensor, index: Tensor, latest: Tensor) -> Tensor:
        """Of the images `index` [batch] by their (calibrated) logits [batch, classes]; `latest` [images + 1] is the
        last known label of each image."""
        sure, labels = self.probabilities(logits).max(1)
        weights = (sure >= self.least[labels]).float()
        if self.weight == "confidence":
            weights = weights * sure
        if self.weight == "neighbours":
            weights = weights * (latest[self.nearest[index].long()] == labels[:, None]).float().mean(1)
        return weights

    def state_dict(self) -> dict[str, object]:
        return {"epoch": self.epoch, "nearest": self.nearest, "temperature": self.temperature, "least": self.least}

    def load_state_dict(self, state: dict[str, object], device: torch.device) -> None:
        self.epoch = state["epoch"]
        self.nearest, self.temperature, self.least = (state[name].to(device)
                                                      for name in ("nearest", "temperature", "least"))


def nearest_rows(features: Tensor, count: int) -> Tensor:
    """[n, count]: for each row of the unit vectors [n, d] the rows of the largest inner product, without itself."""
    nearest, rows = [], max(1, PRODUCTS // len(features))
    for begin in range(0, len(features), rows):
        similarity = features[begin:begin + rows] @ features.t()
        similarity.diagonal(begin).fill_(-torch.inf)
        nearest.append(similarity.topk(count).indices)
    return torch.cat(nearest)


def build_weights(cfg: CfgNode) -> ImageWeights | None:
    """What cfg.PSEUDO_LABEL asks for; None where all images count alike and labels are hard."""
    own = cfg.PSEUDO_LABEL
    used = own.WEIGHT != "none" or own.SHARE < 1 or own.SOFT
    return ImageWeights(own, cfg.OPTIM.MAX_EPOCH) if used else None
