"""Files that are written whole or not at all."""

from __future__ import annotations

import os
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
