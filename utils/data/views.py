"""Views of an image: the weak one that the teacher and the evaluation see, the strong one that the student sees.

A view is made in three steps. `prepare` turns the decoded image into 8-bit pixels and needs no randomness, so its
result can be cached; `sample` makes of them an image of the final size, with parameters drawn for it; `finish` turns
a batch of these into normalised tensors on the training device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import InputError
from .augment import ColorJitter, GaussianBlur, RandomFlip, RandomGrayscale, crop_box

CROP = "random_resized_crop"
PARTS = {"random_flip": RandomFlip, "color_jitter": ColorJitter, "random_grayscale": RandomGrayscale,
         "gaussian_blur": GaussianBlur}

LONGEST = 32  # times its short side: an image's part beyond is cut off before a centre crop


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread within: operations on one image are so short that sharing them costs more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class WeakView:
    """Resized to `size` on the short side and cut at the centre, exactly as torchvision does it with Pillow."""

    num_params = 0

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"):
        self.size, self.interpolation = size, interpolation
        self.mean, self.std = mean, std

    @property
    def source(self) -> str:
        """Names what `prepare` makes: views of the same source share it."""
        return f"weak-{self.size}-{self.interpolation}"

    @property
    def fixed_shape(self) -> tuple[int, int, int] | None:
        """The shape of what `prepare` makes of any image; None where that depends on the image."""
        return self.size, self.size, 3

    def stored_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape of what `prepare` makes of an image of this size."""
        return self.size, self.size, 3

    def prepare(self, image: Image.Image) -> np.ndarray:
        """RGB image → uint8 pixels [height, width, 3]."""
        image = _shortened(image)
        width, height = (int(self.size * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return np.asarray(image.crop((left, top, left + self.size, top + self.size)))

    def sample(self, pixels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Prepared pixels → (uint8 [size, size, 3], parameters [num_params])."""
        return torch.from_numpy(np.array(pixels)), torch.empty(0)

    def finish(self, images: Tensor, params: Tensor) -> Tensor:
        """uint8 [batch, size, size, 3], parameters [batch, num_params], on one device → normalised
        [batch, 3, size, size] there."""
        if images.device.type != "cpu":
            return self._finish(images, params)
        result = torch.empty(len(images), 3, self.size, self.size)
        with one_thread():  # one image stays in a core's cache, and its memory serves the next one
            for place, *part in zip(result.split(1), images.split(1), params.split(1)):
                place.copy_(self._finish(*part))
        return result

    def _finish(self, images: Tensor, params: Tensor) -> Tensor:
        x = self._augment(images.permute(0, 3, 1, 2).contiguous() * (1 / 255), params)
        for channel, mean, std in zip(x.unbind(1), self.mean, self.std):  # by numbers: tensors would have to be sent
            channel.sub_(mean).div_(std)
        return x

    def _augment(self, x: Tensor, params: Tensor) -> Tensor:
        """Images [batch, 3, size, size] in [0, 1] → the same, as `params` say; x may be used."""
        return x


class StrongView(WeakView):
    """A random crop, resized, and random changes of its colours: the parts `names`, in their order.

    The crop is cut from the image reduced to `source_scale` · size on its short side (smaller ones as they are) and
    resized by `crop_interpolation`; a share `blur_prob` of the views is blurred. A crop of a fifth of a square is as
    sharp as one cut from the full image from a scale of 1 / √0.2 = 2.24 on, if the reduction itself keeps what is
    fine: Lanczos does, bicubic takes 3 % of the gradient energy of photographs.
    """

    def __init__(self, size: int, names: Sequence[str], mean: Sequence[float], std: Sequence[float],
                 interpolation: str = "bicubic", crop_interpolation: str = "bilinear", source_scale: float = 2.3,
                 blur_prob: float = 1.0):
        super().__init__(size, mean, std, interpolation)
        self.crops, self.crop_interpolation = CROP in names, crop_interpolation
        parts = {**PARTS, "gaussian_blur": partial(GaussianBlur, p=blur_prob)}
        self.parts = [parts[name]() for name in names if name in parts]
        self.num_params = sum(part.size for part in self.parts)
        self.limit = round(source_scale * size)

    @property
    def source(self) -> str:
        return f"source-{self.limit}-lanczos" if self.crops else super().source

    @property
    def fixed_shape(self) -> tuple[int, int, int] | None:
        return None if self.crops else super().fixed_shape

    def stored_shape(self, height: int, width: int) -> tuple[int, int, int]:
        if not self.crops:
            return super().stored_shape(height, width)
        factor = min(1.0, self.limit / min(height, width))
        return max(round(height * factor), 1), max(round(width * factor), 1), 3

    def prepare(self, image: Image.Image) -> np.ndarray:
        if not self.crops:
            return super().prepare(image)
        height, width, _ = self.stored_shape(image.height, image.width)
        return np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))

    def sample(self, pixels: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        if self.crops:
            top, left, height, width = crop_box(*pixels.shape[:2], rng)
            pixels = np.array(pixels[top:top + height, left:left + width])
            image = _resize(pixels, self.size, self.crop_interpolation)
        else:
            image = torch.from_numpy(np.array(pixels))
        drawn = [value for part in self.parts for value in part.encode(part.draw(rng))]
        return image, torch.tensor(drawn, dtype=torch.float32)

    def _augment(self, x: Tensor, params: Tensor) -> Tensor:
        for part, own in zip(self.parts, params.split([part.size for part in self.parts], 1)):
            x = part(x, own)
        return x


def _shortened(image: Image.Image) -> Image.Image:
    """The middle of a very long image, where a centre crop will come from: resized whole, a line of 1 × 30,000 px would
    take 6.8 GB at 224 px."""
    long = LONGEST * min(image.size)
    width, height = (min(side, long + (side - long) % 2) for side in image.size)  # an even part falls off: as centred
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)) if image.size != (width, height) else image


def _resize(pixels: np.ndarray, size: int, interpolation: str) -> Tensor:
    """uint8 [height, width, 3] → [size, size, 3] with antialiasing: torch's kernel, Pillow's result to ±1."""
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = F.interpolate(image, (size, size), mode=interpolation, antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).contiguous()


def build_views(size: int, names: Sequence[str], mean: Sequence[float], std: Sequence[float],
                interpolation: str = "bicubic", **strong: object) -> tuple[WeakView, StrongView]:
    """(weak, strong) of the data set.

    `names` lists the strong view's parts in order, `strong` holds what else it takes; `center_crop` and `normalize` are
    accepted, since every view ends with them. Raises InputError for an unknown name, and for a crop that does not come
    first.
    """
    unknown = [name for name in names if name not in (CROP, *PARTS, "center_crop", "normalize")]
    if unknown:
        raise InputError(f"INPUT.TRANSFORMS: unknown {', '.join(unknown)}; valid: {', '.join((CROP, *PARTS))}")
    if CROP in names[1:]:
        raise InputError(f"INPUT.TRANSFORMS: {CROP} must come first, once; the other parts work on its result")
    return WeakView(size, mean, std, interpolation), StrongView(size, names, mean, std, interpolation, **strong)
