"""Views of an image: the weak one that the teacher and the evaluation see, the strong one that the student sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import v2

from .errors import InputError

View = Callable[[Image.Image], Tensor]


class GaussianBlur:
    """Pillow's Gaussian blur with σ drawn uniformly from `sigma`, applied with probability `p` (MoCo v2's recipe)."""

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5):
        self.sigma, self.p = sigma, p

    def __call__(self, image: Image.Image) -> Image.Image:
        low, high = self.sigma
        apply, sigma = torch.rand(()) < self.p, low + (high - low) * torch.rand(()).item()
        return image.filter(ImageFilter.GaussianBlur(sigma)) if apply else image


def strong_parts(size: int, interpolation: v2.InterpolationMode) -> dict[str, Callable]:
    """The named augmentations that INPUT.TRANSFORMS chooses from, with LaFTer's parameters."""
    return {
        "random_resized_crop": v2.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=interpolation),
        "random_flip": v2.RandomHorizontalFlip(),
        "color_jitter": v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        "random_grayscale": v2.RandomGrayscale(p=0.2),
        "gaussian_blur": GaussianBlur(),
    }


def build_views(size: int, names: Sequence[str], mean: Sequence[float], std: Sequence[float],
                interpolation: str = "bicubic") -> tuple[View, View]:
    """(weak, strong): functions from a PIL image to a normalised tensor [3, size, size].

    `names` lists the strong view's parts in order; `center_crop` and `normalize` are accepted, since every view
    ends with them. Raises InputError for an unknown name.
    """
    mode = v2.InterpolationMode(interpolation)
    resize = [v2.Resize(size, interpolation=mode), v2.CenterCrop(size)]
    finish = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    parts = strong_parts(size, mode)
    unknown = [name for name in names if name not in (*parts, "center_crop", "normalize")]
    if unknown:
        raise InputError(f"INPUT.TRANSFORMS: unknown {', '.join(unknown)}; valid: {', '.join(parts)}")
    strong = [parts[name] for name in names if name in parts]
    if "random_resized_crop" not in names:
        strong = resize + strong
    return v2.Compose(resize + finish), v2.Compose(strong + finish)
