"""The strong view's augmentations: parameters drawn per image, applied to batches of tensors on any device.

Each is what torchvision's PIL transform of the same name does (the blur: Pillow's filter), up to the rounding to 8 bits
that PIL makes between steps. A part draws its parameters from a generator of the image's own, so that the batch an
image comes in, and who loads it, never change it. It is a pure function of images [batch, 3, height, width] in [0, 1]
and of what `encode` made of their draws [batch, size]: all that may happen to an image is computed for all of them, and
each keeps what was drawn for it, so that nothing waits for a number and a compiler may fuse it. On a CPU, where looking
is free and the images come one by one, what changes none of them is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def crop_box(height: int, width: int, rng: np.random.Generator, scale: tuple[float, float] = (0.2, 1.0),
             ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop whose share of the area is uniform in `scale` and whose aspect is
    log-uniform in `ratio`; after ten draws that do not fit, the largest central crop within `ratio`."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


class RandomFlip:
    """Mirror left and right with probability 0.5."""

    size = 1  # numbers per image that `encode` makes of a draw

    def draw(self, rng: np.random.Generator) -> list[float]:
        """Whether it happens."""
        return [rng.random() < 0.5]

    def encode(self, drawn: Sequence[float]) -> list[float]:
        """A draw as __call__ takes it."""
        return list(drawn)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        """Images [batch, 3, height, width] in [0, 1] by the numbers [batch, size] of each → the same, changed."""
        applies = params[:, :, None, None]
        return x if _idle(applies) else torch.where(applies > 0, x.flip(-1), x)


class RandomGrayscale:
    """Replace the colours by their luma with probability 0.2."""

    size = 1

    def draw(self, rng: np.random.Generator) -> list[float]:
        """Whether it happens."""
        return [rng.random() < 0.2]

    def encode(self, drawn: Sequence[float]) -> list[float]:
        return list(drawn)

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        applies = params[:, :, None, None]
        return x if _idle(applies) else torch.where(applies > 0, luma(x), x)


class GaussianBlur:
    """Gaussian blur of σ uniform in `sigma` pixels with probability `p` (LaFTer: always; MoCo v2: half)."""

    size = 1

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0), p: float = 1.0):
        self.sigma, self.p = sigma, p
        self.reach = int(box_radius(sigma[1])) + 1  # of the widest

    def draw(self, rng: np.random.Generator) -> list[float]:
        """σ; 0: none."""
        apply, sigma = rng.random() < self.p, rng.uniform(*self.sigma)
        return [sigma if apply else 0.0]

    def encode(self, drawn: Sequence[float]) -> list[float]:
        """The boxes' radius; 0: none."""
        return [box_radius(sigma) for sigma in drawn]

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        radius = params[:, :, None, None]
        if _idle(radius):
            return x
        reach = int(radius.max()) + 1 if radius.device.type == "cpu" else self.reach  # beyond, the weights are 0
        blurred = gaussian_blur(x, radius, reach)
        return blurred if self.p == 1 else torch.where(radius > 0, blurred, x)


class ColorJitter:
    """Brightness, contrast and saturation by factors in [1−s, 1+s] and a shift of the hue, in random order; with
    probability `p`."""

    size = 20  # of `blend` in three places, then the hue's shift and whether it is shifted, then `blend` in three more

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.1,
                 p: float = 0.8):
        self.strengths, self.hue, self.p = (brightness, contrast, saturation), hue, p

    def draw(self, rng: np.random.Generator) -> list[float]:
        """The four amounts, then which of them comes first, second, …; −1: none."""
        apply = rng.random() < self.p
        amounts = [rng.uniform(1 - s, 1 + s) for s in self.strengths] + [rng.uniform(-self.hue, self.hue)]
        return [*amounts, *(rng.permutation(4) if apply else [-1] * 4)]

    def encode(self, drawn: Sequence[float]) -> list[float]:
        """The hue, which costs most, is computed once: the other three stand before or after it, in their order."""
        *factors, shift = drawn[:4]
        order = [int(number) for number in drawn[4:] if number >= 0]
        hue = order.index(HUE) if order else 0
        parts = [[BLENDS[number](factors[number]) for number in part] for part in (order[:hue], order[hue + 1:])]
        before, after = ([value for blend in [*part, *[NO_BLEND] * (3 - len(part))] for value in blend]
                         for part in parts)
        return [*before, shift, float(bool(order)), *after]

    def __call__(self, x: Tensor, params: Tensor) -> Tensor:
        columns = params[:, :, None, None, None].unbind(1)  # [batch, 1, 1, 1] each
        shift, applies = columns[9:11]
        x = _blend_thrice(x, columns[:9])
        if not _idle(applies):
            x = torch.where(applies > 0, adjust_hue(x, shift), x)
        return _blend_thrice(x, columns[11:])


# (factor, share of the mean luma, share of the luma), as `blend` takes them, of a factor
BLENDS = (lambda brightness: (brightness, 0.0, 0.0), lambda contrast: (contrast, 1 - contrast, 0.0),
          lambda saturation: (1.0, 0.0, 1 - saturation))
NO_BLEND, HUE = (1.0, 0.0, 0.0), 3


def _blend_thrice(x: Tensor, columns: Sequence[Tensor]) -> Tensor:
    for factor, mean_share, grey_share in zip(columns[::3], columns[1::3], columns[2::3]):
        if not _idle(factor, 1) or not _idle(grey_share):
            x = blend(x, factor, mean_share, grey_share)
    return x


def _idle(amounts: Tensor, neutral: float = 0.0) -> bool:
    """Whether none of the images changes, as far as that can be told without waiting for the device."""
    return amounts.device.type == "cpu" and bool((amounts == neutral).all())


def luma(x: Tensor) -> Tensor:
    """[batch, 3, h, w] → [batch, 1, h, w]: 0.299 R + 0.587 G + 0.114 B (ITU-R 601-2), as Pillow's conversion to L.

    No matrix product: on a GPU that may have ten bits.
    """
    red, green, blue = x.split(1, 1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend(x: Tensor, factor: Tensor, mean_share: Tensor, grey_share: Tensor) -> Tensor:
    """`factor` · x + `mean_share` · the image's mean luma, then by `grey_share` towards each pixel's luma; in [0, 1].

    Each [batch, 1, 1, 1]. (f, 0, 0) is brightness times f, (f, 1 − f, 0) contrast, (1, 0, 1 − f) saturation.
    """
    grey = luma(x)
    x = (x * factor).addcmul_(grey.mean((2, 3), keepdim=True), mean_share)
    return x.lerp_(grey, grey_share).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` of the whole circle; value and saturation stay.

    With the hue h in sixths of the circle, red is min + (max − min) · clamp(|h−3| − 1, 0, 1), and green and blue have
    2 − |h−2| and 2 − |h−4| in the clamp's place.
    """
    red, green, blue = x.unbind(1)
    high, low = (pick(pick(red, green), blue) for pick in (torch.maximum, torch.minimum))
    span = high - low
    other_than_red, other_than_green = (high - red).sign_(), (high - green).sign_()  # 0 where it is the largest
    hue = (blue - red).lerp_(red - green, other_than_green)  # blends by 0 or 1: torch.where is slow on a CPU
    hue = (green - blue).lerp_(hue, other_than_red).div_(span.clamp(min=1e-12))
    hue.addcmul_(other_than_green.add_(1), other_than_red, value=2)  # + 0, 2 or 4
    hue.add_(6 * shift[:, 0])
    hue.remainder_(6)
    shares = (hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()
    return torch.stack([torch.addcmul(low, span, share.clamp_(0, 1)) for share in shares], 1)


def box_radius(sigma: float) -> float:
    """Half the length, without the middle pixel, of a box three of which have the variance σ²: n + a stands for the
    pixels up to n away, and a share a of the next (Gwosdek et al., SSVM 2011, as in Pillow's GaussianBlur)."""
    whole = math.floor((math.sqrt(4 * sigma ** 2 + 1) - 1) / 2)
    return whole + (2 * whole + 1) * (whole * (whole + 1) - sigma ** 2) / (2 * sigma ** 2 - 6 * (whole + 1) ** 2)


def gaussian_blur(x: Tensor, radius: Tensor, reach: int) -> Tensor:
    """Average rows and columns three times over boxes of `radius` [batch, 1, 1, 1] (see box_radius), each below `reach`
    pixels.

    Each time the image goes on beyond its border as its border's pixels, and is rounded to 8 bits, as Pillow's is:
    without that a weak blur would take up to 10 % more of an image's gradient energy than theirs.
    """
    weights = (radius - torch.arange(-1.0, reach, device=x.device)).clamp_(0, 1) / (2 * radius + 1)
    own, *others = weights.split(1, -1)
    x = x * 255
    for dim, pad in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        for _ in range(3):
            length, padded = x.shape[dim], F.pad(x, pad, mode="replicate")
            x = x * own
            for k, weight in enumerate(others, start=1):
                x.addcmul_(padded.narrow(dim, reach - k, length) + padded.narrow(dim, reach + k, length), weight)
            x.round_()
    return x / 255
