"""Checkpoints: written whole or not at all, small, and read without executing anything."""

from __future__ import annotations

import io
import logging
import pickle
import re
import struct
import zipfile
import zlib
from pathlib import Path

import torch

from ..errors import InputError
from ..files import write_whole

log = logging.getLogger(__name__)

# 2 told the backbone by its weights as they were loaded, 3 as they lie in its file; since 4 an epoch under way is told
# in steps of the optimiser, with sums over its images and over its steps
FORMAT = 4
INTERRUPTED = "interrupted.pt"  # within an epoch, where a signal stopped the run
# what damaged bytes raise on their way through zipfile, pickle and torch
DAMAGED_ARCHIVE = (RuntimeError, OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, AssertionError,
                   OverflowError, pickle.UnpicklingError, struct.error, zipfile.BadZipFile, zlib.error)


def pack(content: dict[str, object]) -> bytes:
    """A checkpoint's bytes: tensors and plain values only."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    return buffer.getvalue()


def unpack(data: bytes) -> object:
    """The content of `pack`'s bytes, on the CPU. Raises one of DAMAGED_ARCHIVE where they are damaged."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        damaged = archive.testzip()  # torch.load itself checks no checksums
    if damaged:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def save_checkpoint(path: Path, content: dict[str, object]) -> None:
    """Write a checkpoint. Raises TrainingError where the disk does not take it; the earlier ones stay."""
    write_whole(path, pack(content))


def load_checkpoint(path: Path, expected: dict[str, object]) -> dict[str, object]:
    """Read a checkpoint of this project onto the CPU.

    `expected` maps names such as `trainer`, `clip_hash`, `classnames` to what they must be. Raises
    FileNotFoundError; InputError for a damaged file and, with both values, for a difference.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = unpack(path.read_bytes())
    except DAMAGED_ARCHIVE as error:
        raise InputError(f"checkpoint {path} is damaged or none of this project's ({type(error).__name__}); go on from "
                         "another one with --resume PATH") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"checkpoint {path} is not in this project's format {FORMAT}: another version wrote it, with "
                         "which it can be read, or it is none of this project's")
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
    """Delete all but the last `keep` epochs' checkpoints; best.pt always stays. `keep` < 1 keeps all.

    An interrupted epoch's checkpoint goes too: it is older than the epoch that was just saved.
    """
    for epoch in saved_epochs(folder)[:-keep] if keep > 0 else []:
        epoch_path(folder, epoch).unlink()
    (folder / INTERRUPTED).unlink(missing_ok=True)


def drop_later(folder: Path, path: Path, epoch: int) -> None:
    """Delete what was saved after `epoch` epochs, where a run goes back to `path`: it is saved again on the way."""
    for later in saved_epochs(folder):
        if later > epoch:
            epoch_path(folder, later).unlink()
    if path != folder / INTERRUPTED:
        (folder / INTERRUPTED).unlink(missing_ok=True)


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


def keep_best(run: Path, source: Path, epoch: int) -> None:
    """Copy the checkpoint of `epoch`, the best so far, from the folder of the run that this one goes on from."""
    try:
        content = find_checkpoint(source, epoch).read_bytes()
    except FileNotFoundError as error:
        log.warning("the best epoch so far, %d, is in the record alone: %s", epoch, error)
    else:
        write_whole(run / "checkpoints" / "best.pt", content)


def find_latest(run: Path) -> Path | None:
    """Where a run is to go on: within the epoch that was interrupted, or after the last one; None: it has none."""
    interrupted, epochs = run / "checkpoints" / INTERRUPTED, saved_epochs(run / "checkpoints")
    if interrupted.is_file() and load_checkpoint(interrupted, {})["epoch"] >= max(epochs, default=0):
        return interrupted
    return epoch_path(run / "checkpoints", epochs[-1]) if epochs else None
