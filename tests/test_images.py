"""Image files of every mode, as a person sees them: no clipped greys, nothing clear in black, upright."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from utils.data.images import Decoding, choose_decoding, image_shape, read_image, summarise_unreadable
from utils.errors import InputError

RAMP = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (8, 1))  # 64 greys from black to nearly white
COLOURS = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], -1)


def read(path) -> np.ndarray:
    return np.asarray(read_image(path))


def save(tmp_path, image: Image.Image, name: str, **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    seen = read_image(tmp_path / name)
    assert seen.mode == "RGB" and image_shape(tmp_path / name) == (seen.height, seen.width)
    return np.asarray(seen)


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, -1)


# --- modes ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode, name", [("1", "a.png"), ("L", "a.png"), ("P", "a.png"), ("P", "a.gif"),
                                        ("RGB", "a.png"), ("RGB", "a.bmp"), ("RGB", "a.ppm"),
                                        ("RGBA", "a.png"), ("LA", "a.png")])
def test_8_bit_modes_without_loss(tmp_path, mode, name):
    """What is opaque looks as Pillow itself shows it."""
    image = Image.fromarray(COLOURS).convert(mode)
    assert np.array_equal(save(tmp_path, image, name), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode, name", [("CMYK", "a.jpg"), ("CMYK", "a.tif"), ("YCbCr", "a.jpg"), ("RGB", "a.jpg")])
def test_other_colour_spaces(tmp_path, mode, name):
    image = Image.fromarray(COLOURS).convert(mode)
    options = {"quality": 95, "subsampling": 0} if name.endswith("jpg") else {}
    seen = save(tmp_path, image, name, **options).astype(int)
    assert np.abs(seen - np.asarray(image.convert("RGB"))).mean() < 4


@pytest.mark.parametrize("dtype, name", [("<u2", "a.png"), ("<u2", "a.tif"), (">u2", "a.tif")])
def test_16_bit_greys_are_scaled_and_not_clipped(tmp_path, dtype, name):
    seen = save(tmp_path, Image.fromarray((RAMP.astype(np.uint16) * 257).astype(dtype)), name)
    assert np.array_equal(seen, grey(RAMP))


def test_16_bit_greys_in_mode_i_are_scaled_alike(tmp_path):
    """A PGM of 65,535 greys is opened in mode I: its range is the format's, not that of its brightest pixel."""
    dark = RAMP // 4
    (tmp_path / "a.pgm").write_bytes(b"P5 64 8 65535\n" + (dark.astype(np.uint16) * 257).astype(">u2").tobytes())
    assert np.array_equal(read(tmp_path / "a.pgm"), grey(dark))


@pytest.mark.parametrize("values", [RAMP.astype(np.float32) / 252, RAMP.astype(np.float32) * 1000 - 7,
                                    RAMP.astype(np.int32) * 70_000])
def test_32_bit_greys_fill_the_range_from_their_own(tmp_path, values, caplog):
    with caplog.at_level(logging.INFO):
        seen = save(tmp_path, Image.fromarray(values), "a.tif")
    expected = np.rint(RAMP.astype(float) * 255 / 252)
    assert np.abs(seen.astype(float) - grey(expected)).max() <= 1 and seen.min() == 0 and seen.max() == 255


def test_what_is_no_number_spoils_nothing(tmp_path):
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    seen = save(tmp_path, Image.fromarray(values), "a.tif")
    assert seen[0, :3, 0].tolist() == [0, 255, 0] and seen[1, 63, 0] == 255
    assert np.all(save(tmp_path, Image.fromarray(np.full((4, 4), 7, np.float32)), "b.tif") == 0)
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "c.tif")
    with pytest.raises(InputError, match="c.tif .it holds no finite value"):
        read_image(tmp_path / "c.tif")


# --- transparency -----------------------------------------------------------------------------------------------------

def with_alpha(mode: str) -> Image.Image:
    """A ramp whose left half is clear."""
    image = Image.fromarray(COLOURS).convert(mode)
    image.putalpha(Image.fromarray(np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)[None].repeat(8, 0)))
    return image


@pytest.mark.parametrize("mode, name", [("RGB", "a.png"), ("L", "a.png"), ("RGB", "a.webp")])
def test_transparency_is_laid_on_white(tmp_path, mode, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    seen = save(tmp_path, with_alpha(mode), name, **options)
    assert np.all(seen[:, :32] == 255)
    assert np.array_equal(seen[:, 32:], np.asarray(Image.fromarray(COLOURS).convert(mode).convert("RGB"))[:, 32:])


@pytest.mark.parametrize("mode, clear", [("P", 0), ("L", 0), ("RGB", (0, 252, 90))])
def test_a_clear_colour_is_white_too(tmp_path, mode, clear):
    """As a palette's or a PNG's single transparent colour."""
    image = Image.fromarray(RAMP).convert("P") if mode == "P" else Image.fromarray(COLOURS if mode == "RGB" else RAMP)
    seen = save(tmp_path, image, "a.png", transparency=clear)
    assert np.all(seen[:, 0] == 255) and np.array_equal(seen[:, 1:], np.asarray(image.convert("RGB"))[:, 1:])


def test_half_clear_is_half_white(tmp_path):
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    assert np.all(save(tmp_path, image, "a.png") == 204)


# --- several frames ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.mpo"])
def test_the_first_frame_counts(tmp_path, name):
    frames = [Image.new("RGB", (16, 8), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if name == "a.webp" else {}
    seen = save(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
    assert seen.shape == (8, 16, 3) and np.abs(seen.astype(int) - (255, 0, 0)).max() < 5


# --- orientation ------------------------------------------------------------------------------------------------------

def photo(path, orientation: int) -> Image.Image:
    """A ramp of 64 × 8 px, and in its file the orientation that a phone writes."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(COLOURS)
    image.save(path, exif=exif)
    return image


@pytest.mark.parametrize("orientation, turn", [
    (1, None), (2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180),
    (4, Image.Transpose.FLIP_TOP_BOTTOM), (5, Image.Transpose.TRANSPOSE), (6, Image.Transpose.ROTATE_270),
    (7, Image.Transpose.TRANSVERSE), (8, Image.Transpose.ROTATE_90)])
def test_photographs_are_turned_where_that_is_asked_for(tmp_path, orientation, turn):
    path = tmp_path / "a.png"
    image = photo(path, orientation)
    upright = image if turn is None else image.transpose(turn)
    for decoding, expected in ((Decoding(exif=True), upright), (Decoding(exif=False), image)):
        seen = read_image(path, decoding)
        assert np.array_equal(np.asarray(seen), np.asarray(expected))
        assert image_shape(path, decoding) == (seen.height, seen.width)


def test_16_bit_and_clear_photographs_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.png", exif=exif)
    with_alpha("RGB").save(tmp_path / "b.png", exif=exif)
    assert read_image(tmp_path / "a.png").size == read_image(tmp_path / "b.png").size == (8, 64)


def test_tiff_files_are_turned_once(tmp_path):
    """Pillow does it by itself, whatever is asked for."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", exif=exif)
    for decoding in (Decoding(exif=True), Decoding(exif=False)):
        assert image_shape(tmp_path / "a.tif", decoding) == (64, 8)
        seen = np.asarray(read_image(tmp_path / "a.tif", decoding))
        assert np.array_equal(seen, np.rot90(COLOURS, -1))


@pytest.mark.parametrize("exif, own, published", [("auto", True, False), ("apply", True, True),
                                                  ("ignore", False, False)])
def test_published_images_are_turned_on_request_alone(make_cfg, exif, own, published):
    cfg = make_cfg({"INPUT.EXIF": exif})
    assert (choose_decoding(cfg, own=True).exif, choose_decoding(cfg, own=False).exif) == (own, published)


# --- what cannot be read ----------------------------------------------------------------------------------------------

def test_too_many_pixels_are_refused_and_the_key_named(tmp_path, make_cfg):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    small = choose_decoding(make_cfg({"INPUT.MAX_PIXELS": 9_000}), own=True)
    with pytest.raises(InputError, match="a.png .*exceeds limit of 9000 pixels.*INPUT.MAX_PIXELS"):
        read_image(tmp_path / "a.png", small)
    assert read_image(tmp_path / "a.png").size == (100, 100)


def test_heic_says_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.data.images.hint", lambda suffix: {".heic": "pip install pillow-heif"}.get(suffix, ""))
    for name, mend in (("a.heic", "pip install pillow-heif"), ("a.jpg", "replace or remove it")):
        (tmp_path / name).write_bytes(b"no image")
        with pytest.raises(InputError, match=f"cannot read image .*{name} .*; {mend}"):
            read_image(tmp_path / name)


def test_many_unreadable_images_are_one_line():
    said = [f"cannot read image {name}.jpg (cut; off); replace or remove it" for name in "abcdefg"]
    assert summarise_unreadable(said[:1]) == "1 image cannot be read: a.jpg (cut; off)"
    assert summarise_unreadable(said) == ("7 images cannot be read: a.jpg (cut; off); b.jpg (cut; off); c.jpg (cut; "
                                          "off); d.jpg (cut; off); e.jpg (cut; off) and 2 more")
