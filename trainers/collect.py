"""One pass over a loader in evaluation, over all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.errors import InputError

from . import distributed
from .speed import micro_batches

COLUMNS = {"label": "labels", "distribution": "distributions", "index": "index"}


@torch.no_grad()
def collect(loader: DataLoader, compute: Callable[[dict], dict[str, Tensor]], what: str) -> dict[str, object]:
    """The columns that `compute` makes of parts of the batches, `labels` [n], `index` [n] and, where annotated,
    `distributions` [n, classes]: on the CPU, in the order of the images, each image once, whatever the number of
    processes.

    `unreadable` lists what was said of images that were left out. Raises InputError where none could be read.
    """
    _, shares = distributed.exchange(lambda: (None, _collect_share(loader, compute, what)))
    columns = {name: torch.cat([share[name] for share in shares if name in share])
               for name in dict.fromkeys(chain(*shares)) if name != "unreadable"}
    unreadable = list(chain(*(share["unreadable"] for share in shares)))
    if not columns:
        raise InputError(f"none of the {what} images could be read: {unreadable[0] if unreadable else 'there is none'}")
    if len(shares) > 1:
        order = columns["index"].argsort()
        columns = {name: column[order] for name, column in columns.items()}
    return {**columns, "unreadable": unreadable}


def _collect_share(loader: DataLoader, compute: Callable[[dict], dict[str, Tensor]], what: str) -> dict[str, object]:
    """The columns of the images that are this process's."""
    columns, unreadable = defaultdict(list), []
    for batch in tqdm(loader, desc=what, leave=False, **distributed.bar_settings()):
        unreadable += batch.pop("unreadable", [])
        if "label" not in batch:  # no image of the batch could be read
            continue
        for micro in micro_batches(batch):
            for name, column in compute(micro).items():
                columns[name].append(column.cpu())
        for name, own in COLUMNS.items():
            if name in batch:
                columns[own].append(batch[name])
    return {**{name: torch.cat(column) for name, column in columns.items()}, "unreadable": unreadable}
