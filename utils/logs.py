"""Logging for a run: to the terminal, beside the progress bars, and to log.txt."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm


@contextlib.contextmanager
def start_logging(folder: Path) -> Iterator[None]:
    """Within the context, log messages go to the terminal and are appended to `folder`/log.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(terminal)
    root.addHandler(file)
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        root.setLevel(level)
        for handler in (terminal, file):
            root.removeHandler(handler)
            handler.close()
