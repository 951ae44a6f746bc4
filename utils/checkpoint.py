"""Checkpoints: written whole or not at all, small, and read without executing anything."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import torch

from .errors import InputError

FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, object]) -> None:
    """Write to a temporary name in the same folder, flush to the disk, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_checkpoint(path: Path, expected: dict[str, object]) -> dict[str, object]:
    """Read a checkpoint of this project onto the CPU.

    `expected` maps names such as `trainer`, `clip_hash`, `classnames` to what they must be. Raises
    FileNotFoundError; InputError for a damaged file and, with both values, for a difference.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"checkpoint {path} is damaged or none of this project's ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} is not in this project's format {FORMAT}")
    for name, value in expected.items():
        if content.get(name) != value:
            raise InputError(f"checkpoint {path} was made with another {name}: {content.get(name)!r}, here {value!r}")
    return content


def epoch_path(folder: Path, epoch: int) -> Path:
    """The checkpoint after `epoch` epochs (1-based)."""
    return folder / f"epoch{epoch:04d}.pt"


def saved_epochs(folder: Path) -> list[int]:
    """The epochs whose checkpoints are in `folder`, ascending."""
    matches = (re.fullmatch(r"epoch(\d+)\.pt", path.name) for path in folder.glob("epoch*.pt"))
    return sorted(int(match[1]) for match in matches if match)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` epochs' checkpoints; best.pt always stays. `keep` < 1 keeps all."""
    for epoch in saved_epochs(folder)[:-keep] if keep > 0 else []:
        epoch_path(folder, epoch).unlink()


def find_checkpoint(run: Path, epoch: int | None = None) -> Path:
    """A run folder's checkpoint: of `epoch`, or the last; a file is taken as it is."""
    if run.is_file():
        return run
    epochs = saved_epochs(run / "checkpoints")
    if epoch is None and epochs:
        return epoch_path(run / "checkpoints", epochs[-1])
    if epoch in epochs:
        return epoch_path(run / "checkpoints", epoch)
    best = run / "checkpoints" / "best.pt"
    if epoch is not None and best.is_file() and load_checkpoint(best, {})["epoch"] == epoch:
        return best
    have = ", ".join(map(str, epochs)) or "none"
    raise FileNotFoundError(f"no checkpoint of {'any epoch' if epoch is None else f'epoch {epoch}'} in {run}; kept "
                            f"epochs: {have} (TRAIN.KEEP 0 keeps all)")
