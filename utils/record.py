"""A run's folder and what stands in it: config.yaml, split.json, metrics.jsonl, checkpoints/, log.txt, final.json."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from yacs.config import CfgNode

from .config import flatten, read_yaml
from .data import Splits
from .errors import InputError

log = logging.getLogger(__name__)

# keys that do not change a run's numbers
HARMLESS = {"RESUME", "PICTURES", "DEVICE", "LOG_DIR", "OUTPUT_DIR", "EXP_NAME", "DATALOADER.NUM_WORKERS",
            "TRAIN.PRINT_FREQ", "TRAIN.KEEP", "TEXT.CACHE_DIR", "DATASET.ROOT", "DATASET.DOWNLOAD",
            "DATALOADER.CACHE_GB", "DATALOADER.CACHE_DIR", "MODEL.DOWNLOAD_ROOT"}


def run_folder(cfg: CfgNode, dataset: str, trainer: str = "") -> Path:
    """OUTPUT_DIR/<dataset>/<trainer>/<backbone>/<EXP_NAME, or mode and seed>; the trainer is TRAINER.NAME if not given.

    The label-free method's folder is `seed1`; other modes stand before the seed, as in `labels-dual_task-seed1`.
    """
    backbone = backbone_label(cfg.MODEL.BACKBONE.NAME)
    if cfg.TRAIN.SKIP:
        modes = [cfg.TEXT.MODE if cfg.TEXT.MODE == "zero_shot" else "text"]
    else:
        modes = (["direct"] * cfg.TEXT.SKIP + ["labels"] * (cfg.TRAIN.SUPERVISION == "labels")
                 + ["dual_task"] * cfg.DUAL_TASK.ENABLED)
    experiment = cfg.EXP_NAME or "-".join([*modes, f"seed{cfg.SEED}"])
    return Path(cfg.OUTPUT_DIR) / dataset / (trainer or cfg.TRAINER.NAME) / backbone / experiment


def backbone_label(name: str) -> str:
    """A backbone's name as part of a path: ViT-B/32 → ViT-B-32, weights/my_clip.pt → my_clip."""
    return Path(name).stem if Path(name).suffix else name.replace("/", "-")


class Run:
    """A run's folder. Raises InputError where an unfinished run lies in it and `resume` is not set."""

    def __init__(self, folder: Path, resume: bool = False):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        if not resume and not self.finished and (folder / "metrics.jsonl").exists():
            raise InputError(f"{folder} holds an unfinished run: go on with --resume auto, choose another --exp-name, "
                             "or delete the folder")
        folder.mkdir(parents=True, exist_ok=True)

    def check_settings(self, cfg: CfgNode) -> None:
        """InputError where the folder holds a run with settings that would give other numbers than these."""
        path = self.folder / "config.yaml"
        if not path.exists() or not (self.finished or self.rows()):  # nothing there that other settings could spoil
            return
        there, here = (dict(flatten(tree)) for tree in (read_yaml(path), cfg))
        different = [f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
                     for key in sorted({*there, *here} - HARMLESS) if there.get(key) != here.get(key)]
        if different:
            raise InputError(f"{self.folder} holds a run with other settings: {'; '.join(different[:3])}"
                             + (f" and {len(different) - 3} more" if len(different) > 3 else "")
                             + "; choose another --exp-name, or delete the folder")

    @property
    def finished(self) -> bool:
        return (self.folder / "final.json").exists()

    def start(self, cfg: CfgNode, splits: Splits) -> None:
        """Write the resolved configuration and the splits."""
        write_text(self.folder / "config.yaml", cfg.dump())
        path, new = self.folder / "split.json", self.folder / "split.json.part"
        splits.save(new)
        if self.rows() and path.exists() and path.read_bytes() != new.read_bytes():
            raise InputError(f"the images of {splits.name} have changed since {self.folder} began; choose another "
                             "--exp-name")
        os.replace(new, path)

    def append(self, row: dict[str, object]) -> None:
        """Add a row to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict]:
        return read_rows(self.folder / "metrics.jsonl")

    def rewind(self, epochs: int) -> None:
        """Drop the rows of epochs after the first `epochs`: a resumed run writes them again."""
        rows = [row for row in self.rows() if row["epoch"] <= epochs]
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def finish(self, result: dict[str, object]) -> None:
        """Write final.json; its presence means that the run has ended."""
        write_text(self.folder / "final.json", json.dumps(result, indent=2) + "\n")

    def result(self) -> dict:
        return json.loads((self.folder / "final.json").read_text(encoding="utf-8"))


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, none where it does not exist. A last line cut off by a crash is left out."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number} is no JSON: {error}") from error
            log.warning("%s: the last line was cut off and is left out", path)
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
