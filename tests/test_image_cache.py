"""The cache of decoded images: the pixels as without it, made anew when a file changes, capped, never half written."""

from __future__ import annotations

import functools
import logging
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.cache import ImageCache
from utils.data.images import Decoding, read_image
from utils.data.items import Item
from utils.data.loader import build_loader
from utils.data.views import build_views
from utils.errors import InputError

ALL = ("random_resized_crop", "random_flip", "color_jitter", "random_grayscale", "gaussian_blur")
WEAK, STRONG = build_views(16, ALL, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1))
VIEWS = {"weak": WEAK, "strong": STRONG, "strong2": STRONG}
GB = 10 ** 9


@pytest.fixture
def items(tmp_path) -> list[Item]:
    """Twelve images of different sizes and formats."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (20 + 3 * i, 50 - 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / (f"{i}.jpg" if i % 2 else f"{i}.png"))
    return [Item(path, 0, "a") for path in sorted(folder.iterdir())]


def columns(items: list[Item], cache: ImageCache | None, workers: int = 0) -> dict[str, torch.Tensor]:
    loader = build_loader(items, VIEWS, 5, workers, seed=3, shuffle=True, cache=cache)
    loader.batch_sampler.epoch = 2
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_and_decoded_images_give_identical_views(items, tmp_path, workers):
    plain = columns(items, None)
    for _ in range(2):  # built, then found
        cached = columns(items, ImageCache(tmp_path / "cache", GB), workers)
        assert cached.keys() == plain.keys() == {*VIEWS, "label", "index"}
        assert all(torch.equal(cached[name], plain[name]) for name in plain)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the weak view's and the one both strong views share


def test_the_images_are_read_once(items, tmp_path):
    ImageCache(tmp_path, GB).open([item.path for item in items], WEAK, read_image)
    found = ImageCache(tmp_path, GB).open([item.path for item in items], WEAK, lambda path: pytest.fail("read again"))
    assert np.array_equal(found[3], WEAK.prepare(read_image(items[3].path))) and len(found) == 12


def test_a_changed_file_and_other_settings_are_read_anew(items, tmp_path):
    cache, paths = ImageCache(tmp_path / "cache", GB), [item.path for item in items]
    first = cache.open(paths, WEAK, read_image)
    Image.new("RGB", (20, 20), (1, 2, 3)).save(paths[4])
    os.utime(paths[4], ns=(0, 10 ** 15))
    second = cache.open(paths, WEAK, read_image)
    assert (second[4] == (1, 2, 3)).all() and not np.array_equal(first[4], second[4])
    assert np.array_equal(first[5], second[5])
    other, _ = build_views(8, ALL, (0, 0, 0), (1, 1, 1))
    assert cache.open(paths, other, read_image)[0].shape == (8, 8, 3)


def test_beyond_the_cap_images_are_decoded_and_a_line_says_so(items, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        cached = columns(items, ImageCache(tmp_path / "cache", 1000))
    assert "DATALOADER.CACHE_GB" in caplog.text and not list(tmp_path.glob("cache/*"))
    plain = columns(items, None)
    assert all(torch.equal(cached[name], plain[name]) for name in plain)


def test_the_longest_unused_file_makes_room(items, tmp_path):
    paths, one = [item.path for item in items], 16 * 16 * 3 * 6
    files = [ImageCache(tmp_path / "cache", GB).open(part, WEAK, read_image).path for part in (paths[:6], paths[6:])]
    os.utime(files[0], ns=(0, 10 ** 18))
    os.utime(files[1], ns=(0, 10 ** 17))
    cache = ImageCache(tmp_path / "cache", int(2.5 * one))
    assert cache.open(paths[1:7], WEAK, read_image)
    assert files[0].exists() and not files[1].exists()
    assert cache.open(paths[6:], WEAK, read_image) and not files[0].exists()
    assert cache.open(paths[:6], WEAK, read_image) is None  # what this run uses stays


def test_only_the_name_travels_to_another_process(items, tmp_path):
    images = ImageCache(tmp_path, GB).open([item.path for item in items], STRONG, read_image)
    pixels = np.array(images[7])
    content = pickle.dumps(images)
    assert len(content) < 5000 and np.array_equal(pickle.loads(content)[7], pixels)


def test_unreadable_images_are_counted_and_leave_no_file(items, tmp_path):
    for item in items[2:4]:  # headers that are whole, and nothing behind them
        item.path.write_bytes(item.path.read_bytes()[:700])
    with pytest.raises(InputError, match=f"2 images cannot be read: .*{items[2].path.name}.*ON_ERROR skip"):
        columns(items, ImageCache(tmp_path / "cache", GB))
    assert not list((tmp_path / "cache").iterdir())


def test_an_interruption_leaves_no_file(items, tmp_path):
    def interrupted(path: Path) -> Image.Image:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ImageCache(tmp_path / "cache", GB).open([item.path for item in items], WEAK, interrupted)
    assert not list((tmp_path / "cache").iterdir())


def test_skipped_images_are_marked_and_read_again(items, tmp_path):
    """Damaged behind the header, damaged in it, and gone: the others come from the cache, these from the reader."""
    items[2].path.write_bytes(items[2].path.read_bytes()[:700])
    items[3].path.write_bytes(b"no image")
    items[4].path.unlink()
    paths, seen = [item.path for item in items], []

    def batch(cache: ImageCache | None) -> dict[str, object]:
        loader = build_loader(items, VIEWS, 12, 0, seed=3, on_error="skip", cache=cache)
        return {**loader.load(range(12)), "unreadable": loader.unreadable}

    plain, built = batch(None), batch(ImageCache(tmp_path / "cache", GB))
    found = batch(ImageCache(tmp_path / "cache", GB))
    for cached in (built, found):
        assert cached["index"].tolist() == [0, 1, 5, 6, 7, 8, 9, 10, 11]
        assert cached["unreadable"] == plain["unreadable"] and len(plain["unreadable"]) == 3
        assert all(torch.equal(cached[name], plain[name]) for name in (*VIEWS, "label", "index"))
    images = ImageCache(tmp_path / "cache", GB).open(paths, WEAK, seen.append, "skip")
    assert not seen and [images[index] is None for index in range(6)] == [False, False, True, True, True, False]
    with pytest.raises(InputError, match="3 images cannot be read: .*DATALOADER.ON_ERROR skip"):
        ImageCache(tmp_path / "other", GB).open(paths, WEAK, read_image)


def test_a_batch_that_has_no_readable_image(items, tmp_path):
    for item in items[:5]:
        item.path.write_bytes(b"no image")
    loader = build_loader(items, VIEWS, 5, 0, on_error="skip", cache=ImageCache(tmp_path / "cache", GB))
    for _ in range(2):  # a pass begins its list anew
        first, *others = loader
        assert first == {} and len(loader.unreadable) == 5
        assert [len(batch["weak"]) for batch in others] == [5, 2] and "unreadable" not in others[0]


def test_several_processes_may_build_the_same_file(items, tmp_path):
    """The second begins and ends while the first is decoding."""
    paths, late = [item.path for item in items], []

    def read(path: Path) -> Image.Image:
        if not late:
            late.append(ImageCache(tmp_path / "cache", GB).open(paths, WEAK, read_image))
        return read_image(path)

    first = ImageCache(tmp_path / "cache", GB, workers=1).open(paths, WEAK, read)
    assert all(np.array_equal(first[index], late[0][index]) for index in range(12))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_what_another_run_deletes_is_decoded_instead(items, tmp_path):
    """The other run has other images and room for one file alone; the first has not mapped its own yet."""
    paths = [item.path for item in items]
    loader = build_loader(items, {"weak": WEAK}, 5, 0, cache=ImageCache(tmp_path / "cache", GB))
    (file,) = (tmp_path / "cache").iterdir()
    ImageCache(tmp_path / "cache", file.stat().st_size).open(paths[:6], WEAK, read_image)
    assert not file.exists()
    plain = build_loader(items, {"weak": WEAK}, 5, 0)
    assert all(torch.equal(ours["weak"], theirs["weak"]) for ours, theirs in zip(loader, plain, strict=True))


def test_what_a_killed_run_left_is_deleted_after_a_day(items, tmp_path):
    old, new = tmp_path / "images_a.1.part", tmp_path / "images_b.2.part"
    for partial in (old, new):
        partial.write_bytes(b"half")
    os.utime(old, (0, 0))
    ImageCache(tmp_path, GB).open([item.path for item in items], WEAK, read_image)
    assert not old.exists() and new.exists()


def test_a_folder_that_cannot_be_written_or_has_no_room_is_named(items, tmp_path, monkeypatch):
    paths = [item.path for item in items]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="cannot write the image cache in .*file.*CACHE_GB 0"):
        ImageCache(tmp_path / "file", GB).open(paths, WEAK, read_image)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match="No space left.*make room"):
        ImageCache(tmp_path / "cache", GB).open(paths, WEAK, read_image)
    assert not list((tmp_path / "cache").iterdir())


def test_what_is_cached_is_found_without_a_look_into_any_image(items, tmp_path, monkeypatch):
    """The shapes, which differ from image to image, lie in the cache; beyond the cap a weak view needs no header."""
    paths = [item.path for item in items]
    built = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
    monkeypatch.setattr("utils.data.cache.image_shape", lambda *_: pytest.fail("a header was read"))
    found = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
    assert np.array_equal(found.shapes, built.shapes) and len({tuple(shape) for shape in found.shapes}) > 5
    assert all(np.array_equal(found[index], built[index]) for index in range(12))
    assert ImageCache(tmp_path / "other", 10).open(paths, WEAK, read_image) is None


def test_a_damaged_file_is_made_anew(items, tmp_path, caplog):
    paths = [item.path for item in items]
    built = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
    whole, pixels = built.path.read_bytes(), np.array(built[7])
    for damaged in (whole[:-5], whole[:60], b"nonsense", b""):
        built.path.write_bytes(damaged)
        again = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
        assert np.array_equal(again[7], pixels) and again.path.read_bytes() == whole
    assert caplog.text.count("is damaged") == 4


def test_turned_images_are_cached_apart_in_their_own_shape(tmp_path):
    """A photograph of 40 × 20 px held upright, with the orientation that a phone writes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    Image.new("RGB", (40, 20), "green").save(path, exif=exif)
    cache = ImageCache(tmp_path / "cache", GB)
    for turned, shape in ((True, (40, 20, 3)), (False, (20, 40, 3))):
        decoding = Decoding(exif=turned)
        images = cache.open([path], STRONG, functools.partial(read_image, decoding=decoding), "raise", decoding)
        assert images[0].shape == shape
    assert len(list((tmp_path / "cache").iterdir())) == 2
