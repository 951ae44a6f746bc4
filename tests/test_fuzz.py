"""Damaged inputs of every kind, seeded: each ends in one of the program's own errors, or loads as what it is.

Cut short and with flipped bits. What has a checksum must be refused or come back with the same values; text that a
flip leaves valid must be read as what it then says.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import clip
from clip.checkpoint import read_state_dict
from clip.tokenizer import VOCABULARY, read_merges
from tests import tiny_run
from trainers.distributed import USER_ERRORS
from trainers.texts import read_descriptions, read_text_features
from utils.config import load_config
from utils.data.images import read_image
from utils.data.items import Item, Splits, load_splits
from utils.datasets.table import load_dataset
from utils.errors import InputError
from utils.files import read_yaml
from utils.runs.checkpoint import load_checkpoint, save_checkpoint
from utils.runs.random_state import rng_state
from utils.runs.record import Run, read_rows

CASES = 40  # of each kind


def damaged(data: bytes, seed: int) -> bytes:
    """Every third time cut short, else with one to eight flipped bits, half of these near the start or the end."""
    rng = random.Random(seed)
    if seed % 3 == 0:
        return data[: rng.randrange(len(data))]
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = rng.choice((rng.randrange(min(200, len(data))), -1 - rng.randrange(min(200, len(data))),
                           rng.randrange(len(data)), rng.randrange(len(data))))
        result[near] ^= 1 << rng.randrange(8)
    return bytes(result)


def survives(path: Path, data: bytes, read, seed: int):
    """What `read` makes of the damaged file, or None where it refuses it by name in one line."""
    path.write_bytes(damaged(data, seed))
    try:
        return read(path)
    except USER_ERRORS as error:
        named = path.name in str(error) or "is missing; restore it" in str(error)  # an image that split.json names
        assert named and "\n" not in str(error), f"seed {seed}: {error}"
        return None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[bytes, dict]:
    """A checkpoint such as training writes."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    content = {"trainer": "LaFTer", "classnames": ["cat", "dog"], "epoch": 3, "rows": {"last": {"loss": 0.5}},
               "model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": rng_state()}
    path = tmp_path_factory.mktemp("checkpoint") / "epoch0003.pt"
    save_checkpoint(path, content)
    return path.read_bytes(), load_checkpoint(path, {})


@pytest.mark.parametrize("part", range(4))
def test_checkpoints(tmp_path, checkpoint, part):
    data, whole = checkpoint
    loaded = 0
    for seed in range(part * CASES, (part + 1) * CASES):
        found = survives(tmp_path / "epoch0003.pt", data, lambda path: load_checkpoint(path, {}), seed)
        if found is not None:
            tiny_run.assert_same(found, whole, f"seed {seed}")
            loaded += 1
    assert loaded < CASES / 2


def archive(model, path: Path) -> None:
    torch.jit.script(model).save(str(path))


@pytest.mark.parametrize("form", ["state dict", "archive"])
def test_state_dicts(tmp_path, form):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.LayerNorm(16))
    if form == "archive":
        archive(model, tmp_path / "whole.pt")
    else:
        torch.save(model.state_dict(), tmp_path / "whole.pt")
    data, whole = (tmp_path / "whole.pt").read_bytes(), read_state_dict(tmp_path / "whole.pt")
    for seed in range(CASES):
        found = survives(tmp_path / "clip.pt", data, read_state_dict, seed)
        if found is not None:
            tiny_run.assert_same(found, whole, f"{form}, seed {seed}")


def test_the_vocabulary(tmp_path):
    data = VOCABULARY.read_bytes()
    for seed in range(20):
        assert survives(tmp_path / VOCABULARY.name, data, read_merges, seed) is None  # its SHA-256 is known


@pytest.mark.parametrize("kind", ["split.json", "descriptions", "metrics.jsonl", "final.json"])
def test_json_of_the_project(tmp_path, kind):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    splits = Splits("x", tmp_path, ["cat", "dog"], [Item(tmp_path / "a.png", 0, "cat", (0.25, 0.75))],
                    [], [Item(tmp_path / "b.png", 1, "dog", (0.5, 0.5))])
    rows = "".join(json.dumps({"epoch": epoch, "loss": 1 / (epoch + 1)}) + "\n" for epoch in range(5))
    text, read = {
        "split.json": (splits.to_json(), lambda path: load_splits(path, tmp_path)),
        "descriptions": (json.dumps({"cat": ["a small cat", "whiskers"], "dog": ["a dog's tail"]}),
                         lambda path: read_descriptions(str(path))),
        "metrics.jsonl": (rows, read_rows),
        "final.json": (json.dumps({"dataset": "x", "splits": {"test": {"last": {"top1": 0.5}}}}),
                       lambda path: Run(path.parent).result()),
    }[kind]
    path = tmp_path / (kind if "." in kind else "d.json")
    for seed in range(CASES):
        found = survives(path, text.encode(), read, seed)
        if found is None:
            continue
        if kind == "metrics.jsonl":  # a last line that was cut off is left out
            *lines, last = path.read_bytes().splitlines() or [b""]
            assert found == [json.loads(line) for line in [*lines, *([last] if is_json(last) else [])]], f"seed {seed}"
        else:
            says = json.loads(path.read_text(encoding="utf-8"))
            assert json.loads(found.to_json()) == says if kind == "split.json" else found == says, f"seed {seed}"


def is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_yaml(tmp_path):
    text = "DATASET: {NAME: folder, ROOT: data, SIGMA_CONF: 0.5}\nOPTIM:\n  LR: 0.25\n  MAX_EPOCH: 4\n" \
           "TRAIN: {SUPERVISION: labels}\nMULTI_LAYER_PROMPT: {STAGES: [[0, 1], [2, 3]]}\n"
    for seed in range(2 * CASES):
        tree = survives(tmp_path / "run.yaml", text.encode(), read_yaml, seed)
        if tree is None:
            continue
        assert tree == (yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8")) or {})
        try:
            cfg = load_config(trainer_file=str(tmp_path / "run.yaml"))
        except InputError as error:
            assert "\n" not in str(error), f"seed {seed}"
        else:
            assert tree["DATASET"]["NAME"] == cfg.DATASET.NAME


def test_annotations_of_a_data_set(tmp_path):
    """EmoSet's info.json and rows, through the reader that a user's command reaches."""
    root = tmp_path / "EmoSet"
    (root / "image").mkdir(parents=True)
    emotions = ["amusement", "anger", "awe"]
    files = {"info.json": json.dumps({"label2idx": {name: index for index, name in enumerate(emotions)}})}
    for split in ("train", "val", "test"):
        rows = []
        for name in emotions:
            (root / "image" / f"{name}_{split}.jpg").touch()
            rows.append([name, f"image/{name}_{split}.jpg", f"annotation/{name}.json"])
        files[f"{split}.json"] = json.dumps(rows)
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    cfg = load_config("emoset", flags={"DATASET.ROOT": str(tmp_path)})
    assert len(load_dataset(cfg).train) == 3
    for seed in range(CASES):
        name = ["info.json", "train.json"][seed % 2]
        (root / name).write_bytes(damaged(files[name].encode(), seed))
        try:
            assert [item.classname for item in load_dataset(cfg).train] == emotions, f"seed {seed}"
        except USER_ERRORS as error:
            assert "\n" not in str(error), f"seed {seed}: {error}"
        (root / name).write_text(files[name], encoding="utf-8")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of a huge or a corrupt image
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_images(tmp_path, suffix):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    refused = 0
    for seed in range(CASES):
        image = survives(tmp_path / f"image{suffix}", data, read_image, seed)
        refused += image is None
        assert image is None or image.mode == "RGB"
        if suffix == ".jpg" and seed % 3 == 0:
            assert image is None or image.size == (30, 40)
    assert refused > CASES / 4


def test_text_features(tmp_path):
    """The embeddings made elsewhere, a zip with checksums."""
    np.savez(tmp_path / "whole.npz", features=np.eye(2, 8, dtype=np.float32), classnames=["cat", "dog"])
    data, whole = (tmp_path / "whole.npz").read_bytes(), read_text_features(tmp_path / "whole.npz", ["cat", "dog"], 8)
    for seed in range(CASES):
        found = survives(tmp_path / "t.npz", data, lambda path: read_text_features(path, ["cat", "dog"], 8), seed)
        assert found is None or torch.equal(found.features, whole.features)


def test_a_whole_program_meets_a_damaged_checkpoint(tmp_path):
    """What a user sees: the file's name and what to do."""
    path = tmp_path / "clip.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(damaged(path.read_bytes(), 3))
    with pytest.raises(clip.ClipError, match="clip.pt cannot be read: it is damaged, cut short or no checkpoint"):
        clip.load(path)
