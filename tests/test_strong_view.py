"""The strong view against torchvision's published recipe: its mean, its spread and its sharpness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from utils.data.augment import ColorJitter, GaussianBlur, RandomFlip, RandomGrayscale, crop_box
from utils.data.views import build_views

ALL = ("random_resized_crop", "random_flip", "color_jitter", "random_grayscale", "gaussian_blur")
IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def unit(image: Image.Image) -> torch.Tensor:
    """[1, 3, h, w] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def photograph(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Noise whose amplitude falls with the frequency f as photographs' does, as f^-1.1, nearly grey."""
    rng = np.random.default_rng(seed)
    down, right = np.fft.fftfreq(height)[:, None] * width, np.fft.rfftfreq(width)[None] * width
    fall = np.maximum(np.hypot(down, right), 1) ** -1.1
    fields = [np.fft.irfft2(np.fft.rfft2(rng.standard_normal((height, width))) * fall, (height, width))
              for _ in range(4)]
    pixels = np.stack([fields[0] + 0.3 * field for field in fields[1:]], -1)
    pixels = 128 + 45 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def gradient_energy(x: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of neighbouring pixels, of each image [batch, 3, h, w]."""
    return x.diff(dim=-1).square().mean((1, 2, 3)) + x.diff(dim=-2).square().mean((1, 2, 3))


def published_view(image: Image.Image, size: int, rng: np.random.Generator) -> torch.Tensor:
    """The published recipe by torchvision's functions and Pillow's blur on the full image; its amounts are ours."""
    box = crop_box(image.height, image.width, rng)
    (mirrored,), (*amounts, a, b, c, d), (grey,), (sigma,) = (part().draw(rng) for part in (
        RandomFlip, ColorJitter, RandomGrayscale, GaussianBlur))
    image = reference.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR)
    if mirrored:
        image = reference.hflip(image)
    adjust = (reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation,
              reference.adjust_hue)
    for number in (a, b, c, d):
        if number >= 0:  # −1: this view keeps its colours
            image = adjust[number](image, amounts[number])
    if grey:
        image = reference.to_grayscale(image, 3)
    return unit(image.filter(ImageFilter.GaussianBlur(sigma)))[0]


def test_500_strong_views_have_the_published_ones_mean_spread_and_sharpness():
    """Cut from a reduced image, batched and on tensors, against PIL on the full one: the same draws, view by view."""
    _, strong = build_views(32, ALL, *IDENTITY)
    images = [photograph(seed) for seed in range(5)]
    sources = [strong.prepare(image) for image in images]
    assert sources[0].shape == (74, 99, 3)
    rngs = [(np.random.default_rng(seed), np.random.default_rng(seed)) for seed in range(500)]
    samples = [strong.sample(sources[i % 5], first) for i, (first, _) in enumerate(rngs)]
    ours = strong.finish(*(torch.stack(column) for column in zip(*samples)))
    theirs = torch.stack([published_view(images[i % 5], 32, second) for i, (_, second) in enumerate(rngs)])
    assert (ours.mean((1, 2, 3)) - theirs.mean((1, 2, 3))).abs().mean() < 0.008  # PIL cuts off at 8 bits in each step
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), abs=0.008)
    assert ours.std((2, 3)).mean().item() == pytest.approx(theirs.std((2, 3)).mean().item(), rel=0.01)
    assert gradient_energy(ours).mean().item() == pytest.approx(gradient_energy(theirs).mean().item(), rel=0.02)


def test_a_crop_out_of_the_reduced_image_is_that_of_the_full_one():
    """As sharp, within 2 % of the gradient energy, whether it takes a fifth of the image or all, and the same."""
    _, strong = build_views(32, ("random_resized_crop",), *IDENTITY)
    assert strong.prepare(photograph(0, 20, 30)).shape == (30, 20, 3)  # a small image stays as it is
    full = photograph(0)
    reduced = Image.fromarray(strong.prepare(full))
    assert (reduced.height, reduced.width, 3) == strong.stored_shape(240, 320) == (74, 99, 3)
    for scale in ((0.2, 0.25), (0.4, 0.6), (0.9, 1.0)):
        rng, energies = np.random.default_rng(0), []
        for _ in range(40):
            top, left, height, width = crop_box(240, 320, rng, scale)
            box = np.array([left, top, left + width, top + height])
            crops = [unit(image.resize((32, 32), Image.Resampling.BILINEAR, box=tuple(box * ratio)))
                     for image, ratio in ((full, 1), (reduced, np.array([99 / 320, 74 / 240] * 2)))]
            assert (crops[0] - crops[1]).abs().mean() < 0.01
            energies.append([gradient_energy(crop).item() for crop in crops])
        from_full, from_reduced = np.sum(energies, 0)
        assert from_reduced == pytest.approx(from_full, rel=0.02)
