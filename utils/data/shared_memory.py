"""The room that loader processes have to hand their batches over in."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from .views import WeakView

log = logging.getLogger(__name__)

FOLDER = Path("/dev/shm")  # Linux; other systems have no such limit
PREFETCHED = 2  # batches that torch keeps ready for each process
PAGE = 4096


def batch_bytes(views: Iterable[WeakView], batch_size: int) -> int:
    """Shared memory of a batch of `ImageDataset`: 8-bit images and their parameters; each tensor begins a page."""
    columns = [size for view in views for size in (3 * view.size ** 2, 4 * view.num_params)] + [8, 8]
    return sum(-(-batch_size * size // PAGE) * PAGE for size in columns)


def affordable_workers(workers: int, needed: int) -> int:
    """`workers`, or as many fewer as /dev/shm has room for where each batch takes `needed` bytes; a line then says so.

    A loader process that finds no room is killed (SIGBUS) or fails. A tenth is left to others, and a batch to the
    main process, which holds one while the next are prepared. `needed` is of the batches of all processes of the run,
    as though they were on this machine.
    """
    if not workers or not FOLDER.is_dir():
        return workers
    free = shutil.disk_usage(FOLDER).free
    fitting = max(int((0.9 * free / needed - 1) // PREFETCHED), 0)
    if fitting >= workers:
        return workers
    log.warning("%s has %.1f MB free and %d loader processes need %.1f MB: taking %d; give it more (docker run "
                "--shm-size 2g), or set --workers %d", FOLDER, free / 1e6, workers,
                (PREFETCHED * workers + 1) * needed / 0.9e6, fitting, fitting)
    return fitting
