"""Splits are drawn by the seed alone, and a sample keeps its own label, index and distribution in any order."""

from __future__ import annotations

import json
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.data.images import read_image
from utils.data.items import UNKNOWN, Item, Splits, carve, check_images, few_shot, load_splits
from utils.data.loader import EpochSampler, ImageDataset, build_loader
from utils.data.views import build_views
from utils.errors import InputError

STRONG = ("random_resized_crop", "random_flip", "color_jitter", "random_grayscale", "gaussian_blur")
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # mean and std that leave pixels as they are


def items_of(counts: dict[int, int]) -> list[Item]:
    """Items of several classes, mixed; no files."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(labels))
    return [Item(Path(f"{i}.png"), labels[i], f"c{labels[i]}") for i in order]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Item]:
    """23 images whose corners tell their number, with a distribution of their own each."""
    folder = tmp_path_factory.mktemp("pictures")
    items = []
    for i in range(23):
        noise = np.random.default_rng(i).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        noise[:, :, 0] = 10 * i  # the red channel is the number
        Image.fromarray(noise).save(folder / f"{i}.png")
        shares = torch.softmax(torch.arange(4.0) * (i % 5 - 2), 0).double()
        items.append(Item(folder / f"{i}.png", (7 * i) % 4, f"c{(7 * i) % 4}", tuple(shares.tolist())))
    return items


# --- splits ---------------------------------------------------------------------------------------------------------

def test_carve_is_stratified_seeded_and_complete():
    items = items_of({0: 20, 1: 10, 2: 5, UNKNOWN: 10})
    rest, part = carve(items, 0.3, seed=3)
    assert Counter(item.label for item in part) == {0: 6, 1: 3, 2: round(0.3 * 5), UNKNOWN: 3}
    assert sorted([*rest, *part], key=items.index) == items and not set(rest) & set(part)
    assert rest == [item for item in items if item in set(rest)]  # both keep the order
    assert part == [item for item in items if item in set(part)]
    assert carve(items, 0.3, seed=3) == (rest, part)
    assert carve(items, 0.3, seed=4)[1] != part
    assert carve(items, 0.0, seed=3) == (items, []) and carve(items, 1.0, seed=3) == ([], items)


def test_few_shot_takes_so_many_of_each_class():
    items = items_of({0: 20, 1: 10, 2: 2})
    chosen = few_shot(items, [4], seed=1)
    assert Counter(item.label for item in chosen) == {0: 4, 1: 4, 2: 2}
    assert chosen == [item for item in items if item in set(chosen)] == few_shot(items, [4], seed=1)
    assert few_shot(items, [4], seed=2) != chosen


def test_few_shot_takes_a_number_for_each_class():
    items = items_of({0: 20, 1: 10, 2: 9, 3: 2})
    chosen = few_shot(items, [4, 3, -1, 5], seed=1)
    assert Counter(item.label for item in chosen) == {0: 4, 1: 3, 2: 9, 3: 2}
    assert {item for item in chosen if item.label == 0} <= set(few_shot(items, [4], seed=1))  # the same draw


def test_draws_are_those_of_earlier_versions():
    """As recorded before the classes were grouped in one pass: a run's seed means the same images."""
    labels = [UNKNOWN if i % 11 == 0 else (i * i + 3 * i) % 5 for i in range(40)]  # four unlabelled, classes 0, 3, 4
    items = [Item(Path(f"{i}.png"), label, "") for i, label in enumerate(labels)]
    assert [items.index(item) for item in carve(items, 0.3, 7)[1]] == [0, 1, 6, 10, 13, 17, 24, 25, 32, 34, 39]
    assert [items.index(item) for item in few_shot(items, [2], 7)] == [0, 1, 6, 10, 22, 32, 34, 39]


def test_classes_are_grouped_in_one_pass():
    looks = Counter()

    class Watched(Item):
        def __getattribute__(self, name):
            looks[name] += name == "label"
            return super().__getattribute__(name)

    items = [Watched(Path(f"{i}.png"), i % 50, "") for i in range(500)]
    carve(items, 0.3, 1)
    few_shot(items, [2], 1)
    assert looks["label"] == 2 * 500


@pytest.mark.parametrize("name", ["1.png", "größe é 图.png", 'a "b".png', "x], [y]], z.png"])
def test_splits_survive_saving(tmp_path, name):
    folder = tmp_path / "data" / "sub folder"
    folder.mkdir(parents=True)
    paths = [folder / name, folder / "2.png", tmp_path / "data" / "3.png"]
    for path in paths:
        path.touch()
    items = [Item(paths[0], 1, "b, c", (0.1, 1 / 3, 1 - 0.1 - 1 / 3)), Item(paths[1], UNKNOWN, ""),
             Item(paths[2], 0, "a", (1.0, 0.0, 0.0))]
    splits = Splits("mine", tmp_path / "data", ["a", "b, c", "d"], items[:2], [], items[2:])
    splits.save(tmp_path / "split.json")
    assert load_splits(tmp_path / "split.json", tmp_path / "data") == splits
    stored = json.loads((tmp_path / "split.json").read_text(encoding="utf-8"))
    assert stored["train"][0][:2] == [f"sub folder/{name}", 1]  # relative, with slashes on every system


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x", "classnames": [], "train": []}',
                                  '{"name": "x", "classnames": ["a"], "train": [["1.png"]], "val": [], "test": []}',
                                  '{"name": "x", "classnames": ["a"], "train": [["1.png", "a", "a", null]], "val": [], '
                                  '"test": []}'])
def test_a_damaged_split_file_is_named(tmp_path, text):
    (tmp_path / "split.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="split.json"):
        load_splits(tmp_path / "split.json", tmp_path)


def test_missing_images_are_named_and_counted(tmp_path):
    items = [Item(tmp_path / f"{i}.png", 0, "a") for i in range(3)]
    items[0].path.touch()
    with pytest.raises(InputError, match=r"1\.png is missing \(2 in all\)"):
        check_images(items)
    Splits("x", tmp_path, ["a"], items, [], []).save(tmp_path / "split.json")
    with pytest.raises(InputError, match=r"1\.png is missing"):
        load_splits(tmp_path / "split.json", tmp_path)


# --- loaders --------------------------------------------------------------------------------------------------------

def test_the_sampler_shuffles_by_seed_and_epoch():
    sampler = EpochSampler(10, seed=5, shuffle=True, batch_size=3)
    first = list(sampler)
    assert len(sampler) == 4 and list(sampler) == first and [len(batch) for batch in first] == [3, 3, 3, 1]
    assert [sampler.batch_images(batch) for batch in range(4)] == [3, 3, 3, 1]
    first = sum(first, [])
    assert [epoch for epoch, _ in first] == [0] * 10
    assert sorted(index for _, index in first) == list(range(10))
    sampler.epoch = 1
    second = sum(sampler, [])
    assert {epoch for epoch, _ in second} == {1}
    assert [index for _, index in second] != [index for _, index in first]
    assert sum(EpochSampler(10, 6, True, 3), []) != first
    assert list(EpochSampler(4, 5, False, 3)) == [[(0, 0), (0, 1), (0, 2)], [(0, 3)]]


def epoch_of(items: list[Item], workers: int, epoch: int = 0, seed: int = 1, shuffle: bool = True) -> dict:
    """Every column of one epoch, and `strong` by index."""
    weak, strong = build_views(32, STRONG, *PLAIN)
    loader = build_loader(items, {"weak": weak, "strong": strong}, 5, workers, seed, shuffle)
    loader.batch_sampler.epoch = epoch
    batches = list(loader)
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    return columns | {"by_index": dict(zip(columns["index"].tolist(), columns["strong"]))}


@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_keeps_what_is_its_own(pictures, workers):
    columns = epoch_of(pictures, workers)
    assert columns["index"].tolist() != list(range(23)) and sorted(columns["index"].tolist()) == list(range(23))
    for image, label, index, distribution in zip(*(columns[k] for k in ("weak", "label", "index", "distribution"))):
        number = round(image[0].mean().item() * 255 / 10)  # told by the pixels alone
        assert number == index
        assert label == pictures[number].label
        torch.testing.assert_close(distribution, torch.tensor(pictures[number].distribution, dtype=torch.float32),
                                   rtol=0, atol=0)


def test_strong_views_depend_on_seed_epoch_and_index_alone(pictures):
    first = epoch_of(pictures, 0)["by_index"]
    torch.manual_seed(1234)  # the state of the process does not matter
    for other in (epoch_of(pictures, 2), epoch_of(pictures, 0, shuffle=False), epoch_of(pictures[::1], 1)):
        assert all(torch.equal(first[i], other["by_index"][i]) for i in range(23))
    for other in (epoch_of(pictures, 0, epoch=1), epoch_of(pictures, 2, epoch=1), epoch_of(pictures, 0, seed=2)):
        assert not any(torch.equal(first[i], other["by_index"][i]) for i in range(23))
    assert all(torch.equal(a, b) for a, b in zip(*(epoch_of(pictures, w, epoch=1)["strong"] for w in (0, 2))))


def test_persistent_workers_follow_the_epoch(pictures):
    _, strong = build_views(32, STRONG, *PLAIN)
    loader = build_loader(pictures, {"strong": strong}, 5, 2, 1, True)
    for epoch in (0, 1):
        loader.batch_sampler.epoch = epoch
        views = torch.cat([batch["strong"] for batch in loader])
        assert torch.equal(views, epoch_of(pictures, 0, epoch)["strong"])


def test_loading_leaves_the_random_state_alone(pictures):
    _, strong = build_views(32, STRONG, *PLAIN)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sample = build_loader(pictures, {"a": strong, "b": strong}, 5, 0).load([3])
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(sample["a"], sample["b"])  # two crops are two
    twins = build_loader([pictures[3], pictures[3]], {"a": strong}, 5, 0).load([0, 1])["a"]
    assert not torch.equal(twins[0], twins[1])  # the same picture at two places


def test_without_distributions_there_is_no_such_column(pictures):
    weak, _ = build_views(32, (), *PLAIN)
    bare = [Item(item.path, item.label, item.classname) for item in pictures[:2]]
    assert set(build_loader(bare, {"weak": weak}, 2, 0).load([0])) == {"weak", "label", "index"}
    assert "distribution" not in ImageDataset([*bare, pictures[2]], {"weak": weak})[0, 2]


# --- broken images --------------------------------------------------------------------------------------------------

@pytest.fixture(params=["truncated", "text", "empty", "truncated png", "absent"])
def broken(request, tmp_path) -> Path:
    suffix = "png" if "png" in request.param else "jpg"
    path = tmp_path / f"broken one.{suffix}"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(path)
    whole = path.read_bytes()
    contents = {"text": b"no picture at all", "empty": b"", "absent": b""}
    path.write_bytes(contents.get(request.param, whole[: len(whole) // 2]))
    if request.param == "absent":
        path.unlink()
    return path


def test_a_broken_image_is_named(broken):
    with pytest.raises(InputError) as caught:
        read_image(broken)
    assert str(broken) in str(caught.value) and "\n" not in str(caught.value)


def refusal(items: list[Item], workers: int) -> str:
    """What reading all items raises. The traceback's frames are cleared: they would keep the loader's processes."""
    weak, _ = build_views(32, (), *PLAIN)
    try:
        list(build_loader(items, {"weak": weak}, 2, workers))
    except InputError as error:  # the type that LaFTer.py answers in one line
        traceback.clear_frames(error.__traceback__)
        return str(error)
    raise AssertionError("the broken image was read")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_out_of_a_worker(pictures, broken, workers):
    message = refusal([*pictures[:7], Item(broken, 0, "a")], workers)
    last = message.strip().splitlines()[-1]  # what LaFTer.py shows
    assert str(broken) in last and "replace or remove it" in last


@pytest.mark.parametrize("mode, colour", [("L", 100), ("P", 3), ("RGBA", (9, 8, 7, 128)), ("CMYK", (0, 0, 0, 0)),
                                          ("1", 1), ("LA", (5, 255))])
def test_images_of_any_mode_become_rgb(tmp_path, mode, colour):
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    Image.new(mode, (5, 4), colour).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))
