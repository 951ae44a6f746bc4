"""The views of an image: closed forms on constant images, and what each part of the strong view does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from clip.clip import image_transform
from utils.errors import InputError
from utils.transforms import GaussianBlur, build_views, strong_parts

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ALL = ("random_resized_crop", "random_flip", "color_jitter", "random_grayscale", "gaussian_blur")
IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def draws(view, image: Image.Image, count: int = 40) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [view(image) for _ in range(count)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 40), (30, 90), (224, 224), (1, 1)])
def test_the_weak_view_of_a_constant_image_in_closed_form(interpolation, size):
    weak, _ = build_views(32, ALL, MEAN, STD, interpolation)
    view = weak(Image.new("RGB", size, (255, 51, 0)))
    expected = torch.tensor([(value - m) / s for value, m, s in zip((1.0, 0.2, 0.0), MEAN, STD)])
    assert view.shape == (3, 32, 32) and view.dtype == torch.float32
    torch.testing.assert_close(view, expected[:, None, None].expand(3, 32, 32))


def test_the_weak_view_is_the_centre_of_the_short_side():
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255  # the middle third of a wide image
    weak, _ = build_views(20, (), *IDENTITY)
    assert torch.equal(weak(Image.fromarray(pixels)), torch.ones(3, 20, 20))
    image = noise()
    assert torch.equal(weak(image), weak(image))


def test_the_weak_view_is_clips_own_transform():
    weak, _ = build_views(32, (), MEAN, STD)
    for image in (noise(), noise(33, 70, seed=1)):
        torch.testing.assert_close(weak(image), image_transform(32)(image), rtol=0, atol=1e-6)


def test_a_strong_view_without_parts_is_the_weak_one():
    weak, strong = build_views(32, (), MEAN, STD)
    assert torch.equal(strong(noise()), weak(noise()))
    _, named = build_views(32, ("center_crop", "normalize"), MEAN, STD)  # CoOp names what every view does anyway
    assert torch.equal(named(noise()), weak(noise()))


def test_the_strong_view_has_the_size_and_varies():
    _, strong = build_views(32, ALL, MEAN, STD)
    views = draws(strong, noise(), 8)
    assert all(view.shape == (3, 32, 32) and torch.isfinite(view).all() for view in views)
    assert all(not torch.equal(views[0], view) for view in views[1:])
    assert all(torch.equal(a, b) for a, b in zip(views, draws(strong, noise(), 8)))  # by torch's seed alone


def test_random_flip_mirrors_about_half():
    weak, strong = build_views(32, ("random_flip",), *IDENTITY)
    image = noise()
    plain = weak(image)
    flipped = [torch.equal(view, plain.flip(-1)) for view in draws(strong, image, 60)]
    assert all(mirrored or torch.equal(view, plain) for mirrored, view in zip(flipped, draws(strong, image, 60)))
    assert 15 < sum(flipped) < 45


def test_random_grayscale_is_gray_about_a_fifth():
    _, strong = build_views(32, ("random_grayscale",), *IDENTITY)
    gray = [torch.equal(view[0], view[1]) and torch.equal(view[1], view[2]) for view in draws(strong, noise(), 100)]
    assert 8 < sum(gray) < 35


def test_color_jitter_changes_colours_about_four_fifths():
    weak, strong = build_views(16, ("color_jitter",), *IDENTITY)
    image = Image.new("RGB", (20, 20), (200, 120, 40))
    views = draws(strong, image, 100)
    assert 65 < sum(not torch.equal(view, weak(image)) for view in views) < 95
    assert all((view == view[:, :1, :1]).all() for view in views)  # a constant image stays constant


def test_random_resized_crop_takes_a_fifth_to_all():
    """The share of a horizontal and a vertical ramp that a crop spans tells its area."""
    ramp = np.zeros((100, 100, 3), dtype=np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(100)[None, :] * 2, np.arange(100)[:, None] * 2
    _, strong = build_views(50, ("random_resized_crop",), *IDENTITY, "bilinear")
    spans = [(view[:2].amax((1, 2)) - view[:2].amin((1, 2))) * 255 / 200 for view in
             draws(strong, Image.fromarray(ramp), 100)]
    areas = torch.stack(spans).prod(1)
    assert 0.12 < areas.min() < 0.3 and 0.85 < areas.max() < 1.02
    crop = strong_parts(50, InterpolationMode.BICUBIC)["random_resized_crop"]
    assert tuple(crop.scale) == (0.2, 1.0) and crop.interpolation == InterpolationMode.BICUBIC


@pytest.mark.parametrize("p, changed", [(0.0, 0), (1.0, 30)])
def test_gaussian_blur_applies_with_its_probability(p, changed):
    torch.manual_seed(0)
    image = noise()
    blurred = [GaussianBlur(sigma=(1.0, 2.0), p=p)(image) for _ in range(30)]
    assert sum(result.tobytes() != image.tobytes() for result in blurred) == changed
    assert all((result.size, result.mode) == (image.size, "RGB") for result in blurred)


def test_gaussian_blur_is_as_strong_as_its_sigma():
    """A blurred step rises between its 15.9th and 84.1st percentile over 2σ."""
    step = np.zeros((9, 200, 3), dtype=np.uint8)
    step[:, 100:] = 255
    for sigma in (1.0, 2.0, 4.0):
        row = np.asarray(GaussianBlur((sigma, sigma), p=1.0)(Image.fromarray(step)))[4, :, 0] / 255
        positions = np.interp([0.159, 0.841], row, np.arange(200))
        assert positions[1] - positions[0] == pytest.approx(2 * sigma, rel=0.15)


def test_parts_apply_in_the_order_that_was_asked_for():
    parts = [type(part).__name__ for part in build_views(32, ("gaussian_blur", "random_resized_crop"), *IDENTITY)[1]
             .transforms]
    assert parts[:2] == ["GaussianBlur", "RandomResizedCrop"]


@pytest.mark.parametrize("names", [("random_flop",), ("random_flip", "cutout", "autoaugment")])
def test_unknown_parts_are_refused_with_the_valid_ones(names):
    with pytest.raises(InputError) as caught:
        build_views(32, names, MEAN, STD)
    message = str(caught.value)
    assert all(name in message for name in (names[-1], *ALL)) and "INPUT.TRANSFORMS" in message
    assert "unknown random_flip" not in message
