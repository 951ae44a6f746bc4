"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import TrainingError


def write_whole(path: Path, data: bytes) -> None:
    """Write to a temporary name in the same folder, flush to the disk, then rename.

    Raises TrainingError where that fails, for instance on a full disk; a file that was at `path` stays as it was.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise TrainingError(f"cannot write {path} ({error.strerror or error}); what was there before is kept: make "
                            "room, then go on with --resume auto") from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `target` when the block ends well: `target` is whole or not there.

    Nothing is left of it where the block fails. What another process put at `target` meanwhile stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name  # inside, as the temporary folder is closed to other users
        folder.mkdir()
        yield folder
        move_in(folder, target, folder)


def move_in(source: Path, target: Path, last: Path) -> None:
    """Rename `source` to `target`; where that is there already, move into it what it lacks, and `last`, a folder in
    `source` that is moved whole, at the end: who finds it finds the rest too. What is there stays as it is."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if not target.exists():
        try:
            os.replace(source, target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise
    elif source.is_dir() and source != last:
        for path in sorted(source.iterdir(), key=lambda path: path == last or path in last.parents):
            move_in(path, target / path.name, last)
