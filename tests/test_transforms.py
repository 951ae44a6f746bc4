"""The views of an image: closed forms on constant images, and what each part of the strong view does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import functional as reference

from clip.clip import image_transform
from utils.data.augment import (
    BLENDS,
    adjust_hue,
    blend,
    box_radius,
    crop_box,
    gaussian_blur,
    luma,
)
from utils.data.views import _shortened, build_views
from utils.errors import InputError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
ALL = ("random_resized_crop", "random_flip", "color_jitter", "random_grayscale", "gaussian_blur")
IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def look(view, image: Image.Image, seed: int = 0) -> torch.Tensor:
    """One image through all three steps of a view."""
    pixels, params = view.sample(view.prepare(image), np.random.default_rng(seed))
    return view.finish(pixels[None], params[None])[0]


def draws(view, image: Image.Image, count: int = 40) -> list[torch.Tensor]:
    return [look(view, image, seed) for seed in range(count)]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 40), (30, 90), (224, 224), (1, 1)])
def test_the_weak_view_of_a_constant_image_in_closed_form(interpolation, size):
    weak, _ = build_views(32, ALL, MEAN, STD, interpolation)
    view = look(weak, Image.new("RGB", size, (255, 51, 0)))
    expected = torch.tensor([(value - m) / s for value, m, s in zip((1.0, 0.2, 0.0), MEAN, STD)])
    assert view.shape == (3, 32, 32) and view.dtype == torch.float32
    torch.testing.assert_close(view, expected[:, None, None].expand(3, 32, 32))


def test_the_weak_view_is_the_centre_of_the_short_side():
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255  # the middle third of a wide image
    weak, _ = build_views(20, (), *IDENTITY)
    assert torch.equal(look(weak, Image.fromarray(pixels)), torch.ones(3, 20, 20))
    image = noise()
    assert torch.equal(look(weak, image), look(weak, image, seed=1))


def test_the_weak_view_is_clips_own_transform():
    weak, _ = build_views(32, (), MEAN, STD)
    for image in (noise(), noise(33, 70, seed=1)):
        torch.testing.assert_close(look(weak, image), image_transform(32)(image), rtol=0, atol=1e-6)


def test_a_strong_view_without_parts_is_the_weak_one():
    weak, strong = build_views(32, (), MEAN, STD)
    assert torch.equal(look(strong, noise()), look(weak, noise()))
    _, named = build_views(32, ("center_crop", "normalize"), MEAN, STD)  # CoOp names what every view does anyway
    assert torch.equal(look(named, noise()), look(weak, noise()))


def test_the_strong_view_has_the_size_and_varies():
    _, strong = build_views(32, ALL, MEAN, STD)
    views = draws(strong, noise(), 8)
    assert all(view.shape == (3, 32, 32) and torch.isfinite(view).all() for view in views)
    assert all(not torch.equal(views[0], view) for view in views[1:])
    assert all(torch.equal(a, b) for a, b in zip(views, draws(strong, noise(), 8)))  # by the generator alone


def test_random_flip_mirrors_about_half():
    weak, strong = build_views(32, ("random_flip",), *IDENTITY)
    image = noise()
    plain = look(weak, image)
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
    assert 65 < sum(not torch.equal(view, look(weak, image)) for view in views) < 95
    assert all((view - view[:, :1, :1]).abs().max() < 1e-6 for view in views)  # a constant image stays constant


def test_random_resized_crop_takes_a_fifth_to_all():
    """The share of a horizontal and a vertical ramp that a crop spans tells its area."""
    ramp = np.zeros((100, 100, 3), dtype=np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(100)[None, :] * 2, np.arange(100)[:, None] * 2
    _, strong = build_views(50, ("random_resized_crop",), *IDENTITY, "bilinear")
    spans = [(view[:2].amax((1, 2)) - view[:2].amin((1, 2))) * 255 / 200 for view in
             draws(strong, Image.fromarray(ramp), 100)]
    areas = torch.stack(spans).prod(1)
    assert 0.12 < areas.min() < 0.3 and 0.85 < areas.max() < 1.02


@pytest.mark.parametrize("prob, least, most", [(1.0, 100, 100), (0.5, 35, 65), (0.0, 0, 0)])
def test_gaussian_blur_applies_to_its_share_and_keeps_the_mean(prob, least, most):
    weak, strong = build_views(32, ("gaussian_blur",), *IDENTITY, blur_prob=prob)
    image = noise()
    plain, views = look(weak, image), draws(strong, image, 100)
    assert least <= sum(not torch.equal(view, plain) for view in views) <= most
    assert all(view.mean().item() == pytest.approx(plain.mean().item(), abs=0.02) for view in views)


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = box_radius(sigma)
    return gaussian_blur(x, torch.full((len(x), 1, 1, 1), radius), reach=int(radius) + 1)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.8, 1.3, 1.41, 1.42, 2.0, 4.0])
def test_three_boxes_have_the_variance_of_their_sigma(sigma):
    """Σ w k² of a box's weights: 1 up to n pixels away, a share a of the next, all divided by 2 (n + a) + 1."""
    radius = box_radius(sigma)
    whole, share = int(radius), radius % 1
    squares = 2 * sum(k ** 2 for k in range(whole + 1)) + 2 * share * (whole + 1) ** 2
    assert 3 * squares / (2 * radius + 1) == pytest.approx(sigma ** 2, rel=1e-9)
    assert box_radius(0.0) == 0.0


def test_a_wide_blur_is_gaussian():
    """A blurred step rises between its 15.9th and 84.1st percentile over 2σ."""
    step = torch.zeros(1, 3, 9, 200)
    step[..., 100:] = 1
    for sigma in (2.0, 4.0):
        positions = np.interp([0.159, 0.841], blur(step, sigma)[0, 0, 4].numpy(), np.arange(200))
        assert positions[1] - positions[0] == pytest.approx(2 * sigma, rel=0.06)


def test_the_parts_are_refused_where_they_would_not_come_in_the_order_asked_for():
    with pytest.raises(InputError, match="random_resized_crop must come first"):
        build_views(32, ("gaussian_blur", "random_resized_crop"), *IDENTITY)
    parts = [type(part).__name__ for part in build_views(32, ("gaussian_blur", "random_flip"), *IDENTITY)[1].parts]
    assert parts == ["GaussianBlur", "RandomFlip"]


@pytest.mark.parametrize("names", [("random_flop",), ("random_flip", "cutout", "autoaugment")])
def test_unknown_parts_are_refused_with_the_valid_ones(names):
    with pytest.raises(InputError) as caught:
        build_views(32, names, MEAN, STD)
    message = str(caught.value)
    assert all(name in message for name in (names[-1], *ALL)) and "INPUT.TRANSFORMS" in message
    assert "unknown random_flip" not in message


# --- against torchvision --------------------------------------------------------------------------------------------

def unit(image: Image.Image) -> torch.Tensor:
    """[1, 3, h, w] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def adjust(number: int):
    """The blend of that number as a function of images and their factors [batch]."""
    return lambda x, factors: blend(x, *torch.tensor([BLENDS[number](f) for f in factors]).t()[..., None, None, None])


def shift_hue(x: torch.Tensor, shifts: list[float]) -> torch.Tensor:
    return adjust_hue(x, torch.tensor(shifts)[:, None, None, None])


@pytest.mark.parametrize("ours, theirs, amount", [
    (adjust(0), reference.adjust_brightness, 0.6), (adjust(0), reference.adjust_brightness, 1.4),
    (adjust(1), reference.adjust_contrast, 0.6), (adjust(1), reference.adjust_contrast, 1.4),
    (adjust(2), reference.adjust_saturation, 0.6), (adjust(2), reference.adjust_saturation, 1.4),
    (shift_hue, reference.adjust_hue, -0.1), (shift_hue, reference.adjust_hue, 0.07)])
def test_each_operation_is_torchvisions_on_tensors(ours, theirs, amount):
    """Random colours, greys and pure colours; a batch whose second image keeps its colours."""
    x = unit(noise())
    x[..., :8] = x[:, :1, :, :8]
    x[..., 8:16] = x[..., 8:16].round()
    result = ours(torch.cat([x, x]), [amount, 0.0 if ours is shift_hue else 1.0])
    torch.testing.assert_close(result[:1], theirs(x, amount), rtol=0, atol=3e-4)  # theirs rounds the luma's weights
    torch.testing.assert_close(result[1:], x, rtol=0, atol=1e-6)


def test_luma_and_blur_are_pillows():
    image = noise(64, 64)
    grey = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))
    assert (luma(unit(image))[0, 0] * 255 - grey).abs().max() <= 1
    for sigma in (0.15, 0.3, 0.7, 1.2, 1.7, 1.9):
        theirs = unit(image.filter(ImageFilter.GaussianBlur(sigma)))
        difference = (blur(unit(image), sigma) - theirs).abs() * 255
        assert difference.max() < 2.5 and difference.mean() < 0.1  # halves may be rounded down there and up here


def test_crop_boxes_are_distributed_as_torchvisions():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    for height, width in ((240, 320), (90, 400), (7, 300)):
        ours = np.array([crop_box(height, width, rng) for _ in range(3000)], dtype=float)
        blank = torch.empty(3, height, width)
        theirs = np.array([v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8, (0.2, 1.0)), [blank])[name]
                           for _ in range(3000) for name in ("top", "left", "height", "width")], dtype=float)
        theirs = theirs.reshape(-1, 4)
        spread = theirs.std(0) + 1
        assert (abs(ours.mean(0) - theirs.mean(0)) < 0.1 * spread).all()
        assert (abs(ours.std(0) - theirs.std(0)) < 0.1 * spread).all()
        assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()


def test_strong_views_are_distributed_as_torchvisions():
    """Means, spreads and histograms of 600 strong views of one image, by the whole chain of PIL transforms."""
    grid = np.add.outer(np.arange(96), np.arange(128)) / 222
    image = Image.fromarray((np.stack([grid, 1 - grid, grid ** 2], -1) * 255).astype(np.uint8))
    blur = v2.Lambda(lambda i: i.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * torch.rand(()).item())))
    theirs = v2.Compose([
        v2.RandomResizedCrop(32, scale=(0.2, 1.0), interpolation=InterpolationMode.BILINEAR), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(0.2), blur, v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True)])
    torch.manual_seed(0)
    _, strong = build_views(32, ALL, *IDENTITY)
    ours, others = torch.stack(draws(strong, image, 600)), torch.stack([theirs(image) for _ in range(600)])
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3)), lambda x: x.amax((2, 3)) - x.amin((2, 3))):
        a, b = statistic(ours), statistic(others)  # [views, channels]
        assert ((a.mean(0) - b.mean(0)).abs() < 4 * (a.var(0) / 600 + b.var(0) / 600).sqrt()).all()
        assert ((a.std(0) / b.std(0)) - 1).abs().max() < 0.15
    for channel in range(3):
        a, b = (torch.histc(x[:, channel], 16, 0, 1) / x[:, channel].numel() for x in (ours, others))
        assert (a - b).abs().sum() < 0.1


def test_a_batch_changes_no_image():
    """The batched code of a GPU gives each image what it gets alone."""
    _, strong = build_views(32, ALL, *IDENTITY)
    samples = [strong.sample(strong.prepare(noise(seed=i)), np.random.default_rng(i)) for i in range(40)]
    images, params = (torch.stack(column) for column in zip(*samples))
    alone = strong.finish(images, params)
    together = strong._finish(images, params)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert torch.equal(strong.finish(images[7:9], params[7:9]), alone[7:9])


@pytest.mark.parametrize("size", [(33, 700), (700, 33), (64, 65), (31, 31), (1, 32), (32, 1), (20, 641)])
def test_the_weak_view_is_torchvisions_for_every_ordinary_shape(size):
    """Up to 32 times as long as wide: nothing is cut off before it is resized."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    weak, _ = build_views(32, (), MEAN, STD)
    theirs = v2.Compose([v2.Resize(32, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])(image)
    assert np.array_equal(weak.prepare(image), np.asarray(theirs))


@pytest.mark.parametrize("transpose", [False, True])
def test_a_very_long_line_costs_little_and_shows_its_middle(transpose):
    """1 × 30,000 px: whole, at 224 px it would be 224 × 6,720,000."""
    pixels = np.zeros((1, 30_000, 3), dtype=np.uint8)
    pixels[0, 14_990:15_010] = np.arange(20, dtype=np.uint8)[:, None] * 10
    image = Image.fromarray(pixels.transpose(1, 0, 2).copy() if transpose else pixels)
    weak, strong = build_views(224, ALL, MEAN, STD)
    assert max(_shortened(image).size) == 32  # of what is resized
    expected = image.crop((0, 14_980, 1, 15_020) if transpose else (14_980, 0, 15_020, 1))  # 40 px about the middle
    expected = v2.Compose([v2.Resize(224, interpolation=v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])(expected)
    assert np.array_equal(weak.prepare(image), np.asarray(expected))
    assert strong.prepare(image).nbytes == 90_000
