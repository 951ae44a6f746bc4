"""The cache of decoded images: the pixels as without it, shared by splits, made anew when a file changes, capped, never
half written."""

from __future__ import annotations

import functools
import logging
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.cache import CacheFile, ImageCache, file_kind
from utils.data.images import Decoding, image_shape, read_image
from utils.data.items import Item
from utils.data.loader import build_loader
from utils.data.views import build_views
from utils.errors import InputError, SystemFailure

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


def refuse(path: Path) -> Image.Image:
    pytest.fail(f"{path.name} was read again")


def size_of(count: int) -> int:
    """Bytes of a file that holds the weak views of so many images."""
    return 128 + 8 + count * (16 + 12 + 1 + 16 * 16 * 3)


def test_beyond_the_limit_what_fits_is_cached_and_a_line_says_so(items, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        cached = columns(items, ImageCache(tmp_path / "cache", size_of(5) + 700))
    assert "7 of 12 images do not fit into the cache (DATALOADER.CACHE_GB)" in caplog.text
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) == size_of(5)  # no strong view fits
    plain = columns(items, None)
    assert all(torch.equal(cached[name], plain[name]) for name in plain)
    found = ImageCache(tmp_path / "cache", size_of(5)).open([item.path for item in items], WEAK, refuse)
    assert [found[index] is not None for index in range(12)] == [True] * 5 + [False] * 7
    assert not ImageCache(tmp_path / "none", 0).open([items[0].path], WEAK, refuse)[0]
    assert not (tmp_path / "none").exists()


def test_strong_views_are_cached_as_far_as_their_own_sizes_fit(items, tmp_path, monkeypatch):
    """Headers are opened block by block: those behind what fits are left alone."""
    monkeypatch.setattr("utils.data.cache.BLOCK", 4)
    paths, opened = [item.path for item in items], []
    monkeypatch.setattr("utils.data.cache.image_shape",
                        lambda path, decoding: opened.append(path) or image_shape(path, decoding))
    whole = ImageCache(tmp_path / "whole", GB).open(paths, STRONG, read_image)
    limit = 128 + 8 + sum(29 + whole[index].size for index in range(3))
    opened.clear()
    images = ImageCache(tmp_path / "part", limit).open(paths, STRONG, read_image)
    assert [images[index] is not None for index in range(12)] == [True] * 3 + [False] * 9 and len(opened) == 4
    assert all(np.array_equal(images[index], whole[index]) for index in range(3))
    assert sum(file.stat().st_size for file in (tmp_path / "part").iterdir()) == limit


def test_the_splits_of_several_seeds_share_the_images(items, tmp_path):
    """Each image is decoded and stored once, whatever lists it comes in, and in whatever order."""
    read = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(12)
        cache = ImageCache(tmp_path / "cache", GB)
        for part in (order[:7], order[:7], order[7:9], order[9:]):
            paths = [items[index].path for index in part]
            images = cache.open(paths, STRONG, lambda path: read.append(path) or read_image(path))
            assert all(np.array_equal(images[place], STRONG.prepare(read_image(path)))
                       for place, path in enumerate(paths))
    assert sorted(read) == [item.path for item in items]
    stored = sum(np.load(file).size - 8 for file in (tmp_path / "cache").iterdir())
    assert stored == sum(29 + STRONG.prepare(read_image(item.path)).size for item in items)


def test_a_new_image_and_a_changed_one_are_decoded_alone(items, tmp_path):
    paths, read = [item.path for item in items], []
    first = ImageCache(tmp_path / "cache", GB).open(paths[:11], WEAK, read_image)
    os.utime(paths[4], ns=(0, 10 ** 15))
    again = ImageCache(tmp_path / "cache", GB).open([*paths, paths[11]], WEAK,
                                                    lambda path: read.append(path) or read_image(path))
    assert read == [paths[4], paths[11]] and np.array_equal(first[3], again[3])
    assert np.array_equal(again[11], again[12]) and len(again) == 13


def test_the_longest_unused_file_makes_room_and_earlier_versions_files_are_never_read(items, tmp_path):
    paths, folder = [item.path for item in items], tmp_path / "cache"
    kind = file_kind(WEAK.source, Decoding())
    ImageCache(folder, GB).open(paths[:4], WEAK, read_image)
    (used,) = folder.iterdir()
    ImageCache(folder, GB).open(paths[4:8], WEAK, read_image)
    (unused,) = set(folder.iterdir()) - {used}
    old = folder / f"images_{kind}{kind}.npy"  # as the file of a list of images was called
    np.save(old, np.zeros(size_of(4) - 128, np.uint8))
    for age, path in enumerate((used, unused, old)):
        os.utime(path, (0, 10 ** 9 - age))
    cache = ImageCache(folder, 3 * size_of(4))
    images = cache.open([*paths[:4], *paths[8:]], WEAK, read_image)
    assert used.exists() and unused.exists() and not old.exists()
    assert all(np.array_equal(images[place], WEAK.prepare(read_image(path)))
               for place, path in enumerate([*paths[:4], *paths[8:]]))
    other, _ = build_views(8, ALL, (0, 0, 0), (1, 1, 1))
    assert cache.open(paths[4:8], other, read_image)[3].shape == (8, 8, 3)
    assert not unused.exists() and used.exists()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 3 * size_of(4)


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
    ImageCache(tmp_path / "cache", file.stat().st_size).open(paths[:6], STRONG, read_image)
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
    """The shapes, which differ from image to image, lie in the cache; a weak view needs no header."""
    paths = [item.path for item in items]
    built = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
    monkeypatch.setattr("utils.data.cache.image_shape", lambda *_: pytest.fail("a header was read"))
    found = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
    assert np.array_equal(found.shapes, built.shapes) and len({tuple(shape) for shape in found.shapes}) > 5
    assert all(np.array_equal(found[index], built[index]) for index in range(12))
    assert ImageCache(tmp_path / "other", GB).open(paths, WEAK, read_image)[11] is not None


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of open files")
def test_a_file_that_cannot_be_opened_for_want_of_handles_is_not_damaged(items, tmp_path):
    import resource

    paths = [item.path for item in items]
    ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
    (path,), limits = (tmp_path / "cache").iterdir(), resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(SystemFailure, match="too many open files"):
            CacheFile.find(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert path.exists() and CacheFile.find(path)


def test_a_damaged_file_is_made_anew(items, tmp_path, caplog):
    paths = [item.path for item in items]
    built = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
    (path,), pixels = (tmp_path / "cache").iterdir(), np.array(built[7])
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:60], whole[:128], b"nonsense", b"", whole[:128] + b"\xff" + whole[129:]):
        path.write_bytes(damaged)
        again = ImageCache(tmp_path / "cache", GB).open(paths[1:], STRONG, read_image)
        assert np.array_equal(again[6], pixels) and not path.exists()
        again = ImageCache(tmp_path / "cache", GB).open(paths, STRONG, read_image)
        assert np.array_equal(again[7], pixels)
        for file in (tmp_path / "cache").iterdir():
            file.unlink()
    assert caplog.text.count("is damaged") == 6


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
