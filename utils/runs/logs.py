"""Logging for a run: to the terminal, beside the progress bars, and to log.txt."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm


@contextlib.contextmanager
def collect_logs() -> Iterator[list[logging.LogRecord]]:
    """Within the context, log messages are kept, for `start_logging` to tell them once there is a log file."""
    root, kept = logging.getLogger(), logging.handlers.MemoryHandler(10_000, logging.CRITICAL + 1, flushOnClose=False)
    level = root.level
    root.setLevel(logging.INFO)
    root.addHandler(kept)
    try:
        yield kept.buffer
    finally:
        root.removeHandler(kept)
        root.setLevel(level)


@contextlib.contextmanager
def start_logging(folder: Path, messages: Sequence[logging.LogRecord] = (), speaks: bool = True) -> Iterator[None]:
    """Within the context, log messages go to the terminal and are appended to `folder`/log.txt; first `messages`.

    Of several processes one `speaks`; the others' messages go nowhere.
    """
    root = logging.getLogger()
    if not speaks:
        root.addHandler(nowhere := logging.NullHandler())
        try:
            yield
        finally:
            root.removeHandler(nowhere)
        return
    folder.mkdir(parents=True, exist_ok=True)
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
            for message in messages:
                terminal.handle(message)
                file.handle(message)
            yield
    finally:
        root.setLevel(level)
        for handler in (terminal, file):
            root.removeHandler(handler)
            handler.close()
