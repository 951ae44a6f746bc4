"""What corrects a classifier that favours some classes: statistics of its logits over many images, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from yacs.config import CfgNode

from utils.data.items import Splits
from utils.errors import InputError
from utils.values import with_value

MIN_IMAGES = 100  # fewer say little of a class's mean and spread
MIN_SPREAD = 1e-6  # of logits; below it there is only rounding
CONFIDENCE = 0.9  # mean highest probability that `balance` sets its temperature by
ROUNDS = 50  # of Sinkhorn's algorithm
FEW = 10  # images whose mean is hardly one
LARGEST_TABLE = 2**27  # logits, 256 MB, that `auto` keeps unasked
CHUNK = 8192  # rows that are worked on at a time, so that a large table is never there twice


def enough_images(images: int, classes: int) -> bool:
    """Whether statistics of so many images say something of each class."""
    return images >= MIN_IMAGES and images > classes


def settle_calibration(cfg: CfgNode, splits: Splits) -> CfgNode:
    """The configuration with PSEUDO_LABEL.CALIBRATION `auto` replaced by what it becomes.

    That is `std` where classes are learnt from pseudo-labels of enough images, and `none` elsewhere: in a dual task,
    where nothing is measured and emotions differ in how often they are evoked, and for a table of logits beyond
    LARGEST_TABLE. Raises InputError where `check_calibration` does.
    """
    images, classes, mode = len(splits.train), len(splits.classnames), cfg.PSEUDO_LABEL.CALIBRATION
    learnt = cfg.TRAIN.SUPERVISION == "pseudo" and not cfg.TRAIN.SKIP
    if mode == "auto":
        suits = learnt and not cfg.DUAL_TASK.ENABLED and images * classes <= LARGEST_TABLE
        mode = "std" if suits and enough_images(images, classes) else "none"
    if learnt:
        check_calibration(mode, images, classes, cfg.PSEUDO_LABEL.PRIOR)
    return with_value(cfg, "PSEUDO_LABEL.CALIBRATION", mode)


def check_calibration(mode: str, images: int, classes: int, prior: Sequence[float] = ()) -> None:
    """InputError where `images` are too few to calibrate by, or where `prior` is not a share for each class."""
    if mode == "none":
        return
    if not enough_images(images, classes):
        raise InputError(f"calibration {mode} takes its statistics from the images themselves, and {images} of "
                         f"{classes} classes are too few: it needs at least {MIN_IMAGES}, and more than one a class; "
                         "do without it (PSEUDO_LABEL.CALIBRATION none, no --calibrate)")
    if len(prior) not in (0, classes) or not all(share > 0 for share in prior):
        raise InputError(f"PSEUDO_LABEL.PRIOR has {len(prior)} shares for {classes} classes: give one above 0 for "
                         "each, in the order of the classes, or none at all for equal ones")


@torch.no_grad()
def calibrate(logits: Tensor, mode: str, prior: Sequence[float] = ()) -> Tensor:
    """Logits [n, classes] of n unlabelled images, corrected by what these images tell together; → [n, classes].

    `none`: as they are. `mean`: less each class's mean over the images, so that no class attracts more than another.
    `std`: that, over each class's standard deviation. `rest`: less each class's mean over the images whose highest
    logit is another class's, as zero normalisation centres a speaker's scores by those of others (Auckenthaler et al.,
    2000): how many images are of the class hardly moves it. `balance`: probabilities softmax(z / T), scaled by
    Sinkhorn's algorithm (Cuturi, 2013, arXiv 1306.0895) so that their means over the images are `prior`, shares by
    class in any unit ((): equal ones); T makes the mean highest probability 0.9 before that.

    Raises InputError where `check_calibration` does.
    """
    check_calibration(mode, *logits.shape, prior)
    if mode == "none":
        return logits
    if mode == "balance":
        shift, scale = balance_statistics(logits, prior)
        return ((logits - shift) / scale).softmax(-1)
    shift, scale = moment_statistics(mode, moments(logits, mode))
    return (logits - shift) / scale


def moments(rows: Tensor, mode: str, centre: Tensor | float = 0.0) -> Tensor:
    """[3, classes]: by class the number, the sum and the sum of squares of the finite entries of rows [n, classes]; in
    mode `rest` [5, classes]: then number and sum of those that are not the highest of their row + centre [classes]."""
    precision = torch.float32 if rows.device.type == "mps" else torch.float64
    total = 0
    for chunk in rows.split(CHUNK):
        there = chunk.isfinite()
        values = torch.where(there, chunk, 0).to(precision)
        parts = [there.to(precision), values, values.square()]
        if mode == "rest":
            highest = (chunk + centre).argmax(1, keepdim=True)
            parts += [part.scatter(1, highest, 0) for part in parts[:2]]
        total = total + torch.stack(parts).sum(1)
    return total


def moment_statistics(mode: str, sums: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, scale) [classes] of modes `mean`, `std` and `rest` from `moments`: calibrated logits are (z − shift) /
    scale. In `rest` FEW images of mean logits count too: where a class is the highest of nearly all images, the others
    say little, and the mean of all is taken off."""
    count, total, squares, *rest = sums
    mean = total / count
    spread = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=MIN_SPREAD)
    if mode == "rest":
        others, total_of_others = rest
        mean = (total_of_others + FEW * mean) / (others + FEW)
    return mean.float(), (spread if mode == "std" else torch.ones_like(mean)).float()


def balance_statistics(logits: Tensor, prior: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
    """(shift, scale) [classes] of mode `balance`: softmax((z − shift) / scale) has the means `prior`; scale is T.

    A round of Sinkhorn's algorithm makes each row's sum 1 and then scales the columns. What it does to the columns is
    a term g for each class beside z / T; what it does to the rows changes no argmax.
    """
    classes = logits.shape[1]
    shares = logits.new_tensor(list(prior) or [1.0] * classes, dtype=torch.float32)
    log_prior = (shares / shares.sum()).log()
    temperature = confident_temperature(logits)
    term = torch.zeros_like(log_prior)
    for _ in range(ROUNDS):
        sums = [(chunk.float() / temperature + term).log_softmax(1).logsumexp(0) for chunk in logits.split(CHUNK)]
        log_mean = torch.stack(sums).logsumexp(0) - math.log(len(logits))
        term = term + log_prior - log_mean
    return -temperature * term, temperature.expand(classes)


def confident_temperature(logits: Tensor) -> Tensor:
    """T at which the mean highest probability of softmax(z / T) is CONFIDENCE, by bisection; it falls as T grows."""
    def mean(function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([function(chunk.float()).sum() for chunk in logits.split(CHUNK)]).sum() / len(logits)

    def confidence(temperature: Tensor) -> Tensor:
        return mean(lambda rows: (rows / temperature).softmax(1).amax(1))

    centre = mean(lambda rows: rows.mean(1))
    spread = mean(lambda rows: (rows - centre).square().mean(1)).sqrt().clamp(min=MIN_SPREAD)
    low, high = 1e-4 * spread, 1e2 * spread
    for _ in range(30):
        middle = (low * high).sqrt()
        too_low = confidence(middle) > CONFIDENCE
        low, high = torch.where(too_low, middle, low), torch.where(too_low, high, middle)
    return (low * high).sqrt()


class LogitTable:
    """The last logits that a teacher gave each training image, and the calibration that follows from them.

    The rows are kept as differences from the first mean, in half precision: 2 bytes × images × classes, on the
    logits' device and in each checkpoint (2.6 GB for the 1.28 million images and 1,000 classes of ImageNet). An image
    without logits, as one that cannot be read, has an infinite row and counts nowhere. `mean`, `std` and `rest` follow
    each renewed row by sums that are kept beside the table; `balance`, which needs it whole, follows at an epoch's end.
    `none` leaves logits as they are, and only keeps them. Once filled, all tensors keep their place in memory.
    """

    def __init__(self, mode: str, prior: Sequence[float] = ()):
        self.mode, self.prior = mode, prior
        self.rows = self.centre = self.sums = self.shift = self.scale = torch.empty(0)

    def fill(self, logits: Tensor, index: Tensor, images: int) -> None:
        """Start with the logits [n, classes] of the images `index` [n] out of `images`. Raises InputError where
        `check_calibration` does."""
        check_calibration(self.mode, *logits.shape, self.prior)
        self.centre = logits.mean(0)
        self.rows = torch.full((images + 1, logits.shape[1]), torch.inf, dtype=torch.half, device=logits.device)
        self.rows[index] = (logits - self.centre).half()
        self.sums = moments(self.rows, self.mode, self.centre)
        self.shift, self.scale = torch.zeros_like(self.centre), torch.ones_like(self.centre)
        self.end_epoch()

    def calibrated(self, logits: Tensor) -> Tensor:
        """Logits [batch, classes] corrected; their argmax is the label."""
        return (logits - self.shift) / self.scale

    def renew(self, index: Tensor, logits: Tensor) -> None:
        """The logits [batch, classes] of the images `index` [batch], each there once; index −1 is no image."""
        new = torch.where(index[:, None] < 0, torch.inf, logits - self.centre).half()
        self.sums += (moments(new, self.mode, self.centre)
                      - moments(self.rows[index], self.mode, self.centre))
        self.rows[index] = new
        self._follow_moments()

    def end_epoch(self) -> None:
        """Take what `balance` needs from the whole table."""
        self._follow_moments()
        if self.mode == "balance":
            shift, scale = balance_statistics(self.known(), self.prior)
            self.shift.copy_(shift)
            self.scale.copy_(scale)

    def known(self) -> Tensor:
        """The logits [n, classes] of all images that have some, as they were."""
        return self.rows[self.rows[:, 0].isfinite()].float() + self.centre

    def of(self, index: Tensor) -> Tensor:
        """The logits [batch, classes] of the images `index` [batch], as they were."""
        return self.rows[index].float() + self.centre

    def _follow_moments(self) -> None:
        if self.mode in ("mean", "std", "rest"):
            shift, scale = moment_statistics(self.mode, self.sums)
            self.shift.copy_(self.centre + shift)
            self.scale.copy_(scale)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("rows", "centre", "sums", "shift", "scale")}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        for name, tensor in state.items():
            setattr(self, name, tensor.to(device))
