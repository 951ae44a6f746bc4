"""A run's folder and what stands in it: config.yaml, split.json, identity.json, metrics.jsonl, checkpoints/, log.txt,
final.json."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

from filelock import FileLock, Timeout
from yacs.config import CfgNode

from ..errors import InputError, TrainingError, words
from ..files import read_text, write_whole
from .identity import Identity, read_identity
from .tensorboard import Board

log = logging.getLogger(__name__)


def run_folder(cfg: CfgNode, dataset: str, trainer: str = "") -> Path:
    """OUTPUT_DIR/<dataset>/<trainer>/<backbone>/<EXP_NAME, or mode and seed>; the trainer is TRAINER.NAME if not given.

    The label-free method's folder is `seed1`; other modes stand before the seed, as in `labels-dual_task-seed1`, and
    before them other settings than the tuned ones, as in `published-seed1`.
    """
    backbone = backbone_label(cfg.MODEL.BACKBONE.NAME)
    if cfg.TRAIN.SKIP:
        modes = [cfg.TEXT.MODE if cfg.TEXT.MODE == "zero_shot" else "text"]
    else:
        modes = (["direct"] * cfg.TEXT.SKIP + ["labels"] * (cfg.TRAIN.SUPERVISION == "labels")
                 + ["dual_task"] * cfg.DUAL_TASK.ENABLED)
    settings = [cfg.TRAINER.SETTINGS] * (cfg.TRAINER.SETTINGS != "tuned")
    experiment = cfg.EXP_NAME or "-".join([*settings, *modes, f"seed{cfg.SEED}"])
    return Path(cfg.OUTPUT_DIR) / dataset / (trainer or cfg.TRAINER.NAME) / backbone / experiment


def dataset_name(cfg: CfgNode) -> str:
    """The name of the configured data set, as its splits will have it: a folder's own, else DATASET.NAME."""
    return Path(cfg.DATASET.ROOT).resolve().name if cfg.DATASET.NAME == "folder" else cfg.DATASET.NAME


def backbone_label(name: str) -> str:
    """A backbone's name as that of one folder: ViT-B/32 → ViT-B-32; of a path its last part without the suffix of a
    checkpoint, as in weights/my_clip.pt → my_clip, or the folder's, as in clip-vit-base/model.safetensors."""
    if re.fullmatch(r"ViT-\w+/\d+(@\d+px)?", name):
        return name.replace("/", "-")
    path = PureWindowsPath(os.path.abspath(name))  # takes both kinds of slash: records are read on other systems too
    label = path.stem if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors") else path.name
    hub_names = ("model", "pytorch_model", "open_clip_model", "open_clip_pytorch_model")
    return path.parent.name if label in hub_names else label


# a dead process's loader processes, which inherit its lock, look for it every 5 s and end
LOCK_TIMEOUT = 10.0


class Run:
    """A run's folder. Raises InputError where an unfinished run lies in it and `resume` is not set.

    Of several processes only the first writes: to the others' `passive` runs, writing does nothing.
    """

    def __init__(self, folder: Path, resume: bool = False, passive: bool = False):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.passive = passive
        self._board: Board | None = None
        self._lock = FileLock(folder / ".lock")
        if passive:
            return
        if not resume and not self.finished and (folder / "metrics.jsonl").exists():
            raise InputError(f"{folder} holds an unfinished run, or one under way: go on with --resume auto, choose "
                             "another --exp-name, or delete the folder")
        folder.mkdir(parents=True, exist_ok=True)

    def lock(self, timeout: float = LOCK_TIMEOUT) -> None:
        """Keep other processes out until `unlock`, or until this process ends, however it ends.

        Raises InputError where a live process holds the folder for `timeout` seconds.
        """
        if self.passive:
            return
        try:
            self._lock.acquire(timeout)
        except Timeout as error:
            raise InputError(f"{self.folder} is in use by a live process: wait for it to end, or choose another "
                             "--exp-name") from error
        except (OSError, NotImplementedError) as error:
            raise InputError(f"{self.folder} cannot be locked ({words(error, self.folder)}): choose an --output-dir on "
                             "a disk that can be written to and locks files") from error

    def unlock(self) -> None:
        self._lock.release()

    def check(self, here: Identity) -> None:
        """InputError, with what differs and the mend, where the folder holds a run that answers for other inputs."""
        if self.passive or not (self.finished or self.rows()):  # nothing there that other inputs could spoil
            return
        there = read_identity(self.folder)
        if different := list(there.differences(here)):
            raise InputError(f"{self.folder} holds another run: {'; '.join(different[:3])}"
                             + (f" and {len(different) - 3} more" if len(different) > 3 else "")
                             + "; choose another --exp-name, or delete the folder")
        there.check_complete(self.folder)

    @property
    def finished(self) -> bool:
        return (self.folder / "final.json").exists()

    def start(self, cfg: CfgNode, identity: Identity) -> None:
        """Write the resolved configuration and what the run answers for."""
        if self.passive:
            return
        self._board = Board(self.folder / "tensorboard") if cfg.LOG.TENSORBOARD else None
        write_text(self.folder / "config.yaml", cfg.dump())
        identity.save(self.folder)

    def append(self, row: dict[str, object]) -> None:
        """Add a row to metrics.jsonl, and with LOG.TENSORBOARD to TensorBoard's copy of it."""
        if self.passive:
            return
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if self._board:
                self._board.update(self.rows())
        except OSError as error:
            raise TrainingError(f"cannot write {path} ({error.strerror or error}): make room, then go on with "
                                "--resume auto") from error

    def rows(self) -> list[dict]:
        return read_rows(self.folder / "metrics.jsonl")

    def rewind(self, epochs: int, others: Iterable[dict] = ()) -> None:
        """Drop the rows of epochs after the first `epochs`: a resumed run writes them again. `others` are rows of the
        run that it goes on from, for the epochs that this folder has no row of."""
        rows = {row["epoch"]: row for row in (*others, *self.rows()) if row["epoch"] <= epochs}
        write_text(self.folder / "metrics.jsonl", "".join(json.dumps(rows[epoch]) + "\n" for epoch in sorted(rows)))

    def finish(self, result: dict[str, object]) -> None:
        """Write final.json; its presence means that the run has ended."""
        if not self.passive:
            write_text(self.folder / "final.json", json.dumps(result, indent=2) + "\n")

    def result(self) -> dict:
        """The content of final.json. Raises InputError where it is damaged."""
        path = self.folder / "final.json"
        try:
            return json.loads(read_text(path))
        except ValueError as error:
            raise InputError(f"{path} is no valid JSON ({error}); delete it to write it anew with --resume "
                             "auto") from error


def read_rows(path: Path) -> list[dict]:
    """The rows of a metrics.jsonl, none where it does not exist. A last line cut off by a crash is left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []  # a character too may be cut
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise InputError(f"{path}, line {number} is no JSON: {error}") from error
            log.warning("%s: the last line was cut off and is left out", path)
            break
        if not isinstance(row, dict) or not isinstance(row.get("epoch"), int):
            raise InputError(f"{path}, line {number} is no row of a record: it names no epoch")
        rows.append(row)
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all. Raises TrainingError where the disk does not take it."""
    write_whole(path, text.encode())
