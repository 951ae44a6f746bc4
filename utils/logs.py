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
def no_logging() -> Iterator[None]:
    """Within the context log messages go nowhere: of several processes one speaks for all."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


@contextlib.contextmanager
def start_logging(folder: Path, messages: Sequence[logging.LogRecord] = ()) -> Iterator[None]:
    """Within the context, log messages go to the terminal and are appended to `folder`/log.txt; first `messages`."""
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
            for message in messages:
                terminal.handle(message)
                file.handle(message)
            yield
    finally:
        root.setLevel(level)
        for handler in (terminal, file):
            root.removeHandler(handler)
            handler.close()
