"""The strong view's augmentations: parameters drawn per image, applied to batches of tensors on any device.

Each is what torchvision's PIL transform of the same name does (the blur: Pillow's filter), up to the rounding to 8 bits
that PIL makes between steps. A part draws its parameters from a generator of the image's own, so that the batch an
image comes in, and who loads it, never change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2 luma, as Pillow's conversion to L


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

    size = 1  # parameters per image

    def draw(self, rng: np.random.Generator) -> list[float]:
        return [rng.random() < 0.5]

    def __call__(self, x: Tensor, params: list[list[float]]) -> None:
        """Change images x [batch, 3, height, width] in [0, 1] in place, by the parameters of each."""
        _change(x, [row for row, (apply,) in enumerate(params) if apply], lambda images: images.flip(-1))


class RandomGrayscale:
    """Replace the colours by their luma with probability 0.2."""

    size = 1

    def draw(self, rng: np.random.Generator) -> list[float]:
        return [rng.random() < 0.2]

    def __call__(self, x: Tensor, params: list[list[float]]) -> None:
        _change(x, [row for row, (apply,) in enumerate(params) if apply],
                lambda images: luma(images).expand_as(images))


class GaussianBlur:
    """Gaussian blur of σ uniform in `sigma` pixels with probability `p` (LaFTer: always; MoCo v2: half)."""

    size = 1

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0), p: float = 1.0):
        self.sigma, self.p = sigma, p

    def draw(self, rng: np.random.Generator) -> list[float]:
        apply, sigma = rng.random() < self.p, rng.uniform(*self.sigma)
        return [sigma if apply else 0.0]

    def __call__(self, x: Tensor, params: list[list[float]]) -> None:
        radii = [box_radius(sigma) for (sigma,) in params]
        _change(x, [row for row, radius in enumerate(radii) if radius],
                partial(gaussian_blur, reach=int(max(radii)) + 1), radii)


class ColorJitter:
    """Brightness, contrast and saturation by factors in [1−s, 1+s] and a shift of the hue, in random order; with
    probability `p`."""

    size = 8  # the four amounts, then which of them comes first, second, …; −1: none

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, saturation: float = 0.4, hue: float = 0.1,
                 p: float = 0.8):
        self.strengths, self.hue, self.p = (brightness, contrast, saturation), hue, p
        self.operations = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)

    def draw(self, rng: np.random.Generator) -> list[float]:
        apply = rng.random() < self.p
        amounts = [rng.uniform(1 - s, 1 + s) for s in self.strengths] + [rng.uniform(-self.hue, self.hue)]
        return [*amounts, *(rng.permutation(4) if apply else [-1] * 4)]

    def __call__(self, x: Tensor, params: list[list[float]]) -> None:
        for place in range(4, 8):
            for number, operation in enumerate(self.operations):
                _change(x, [row for row, own in enumerate(params) if own[place] == number], operation,
                        [own[number] for own in params])


def _change(x: Tensor, rows: list[int], function: Callable[..., Tensor], amounts: list[float] | None = None) -> None:
    """Put `function` of the images in `rows` [n, 3, h, w], and of their amounts [n, 1, 1, 1], in their place in x.
    A function may use its images' memory."""
    if not rows:
        return
    arguments = []
    if amounts is not None:
        arguments.append(torch.tensor([amounts[row] for row in rows], device=x.device).view(-1, 1, 1, 1))
    if len(rows) == len(x):  # spares two copies
        changed = function(x, *arguments)
        if changed is not x:
            x.copy_(changed)
    else:
        index = torch.tensor(rows, device=x.device)
        x[index] = function(x[index], *arguments)


def luma(x: Tensor) -> Tensor:
    """[batch, 3, h, w] → [batch, 1, h, w]."""
    weights = torch.tensor([GREY], device=x.device)
    return (weights @ x.flatten(2)).unflatten(2, x.shape[2:])


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    return x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, the image's mean luma."""
    mean = luma(x).mean((2, 3), keepdim=True)
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, each pixel's luma."""
    return x.lerp_(luma(x), 1 - factor).clamp_(0, 1)


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
    hue.sub_((hue / 6).floor_().mul_(6))
    shares = (hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2)
    for channel, share in enumerate(shares):
        torch.addcmul(low, span, share.clamp_(0, 1), out=x[:, channel])
    return x


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
    weights = (radius + 1 - torch.arange(reach + 1.0, device=x.device)).clamp_(0, 1) / (2 * radius + 1)
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
