"""TensorBoard's copy of metrics.jsonl, in the run's folder: LOG.TENSORBOARD."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError

LONGEST = 50  # a list with more entries, such as one of very many classes, would bury the other charts


def check_tensorboard() -> None:
    """InputError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError("LOG.TENSORBOARD True needs the package tensorboard: pip install tensorboard")


class Board:
    """Event files in `folder` that hold the rows of a record, each at the step of its epoch."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._writer = None
        self._written = 0

    def update(self, rows: Sequence[dict[str, object]]) -> None:
        """Write those of a record's `rows` that are new. The first call writes all of them anew: what an earlier
        process wrote may be of epochs that this one repeats. A TensorBoard that is open drops them too."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second, and needs the package

            for path in self.folder.glob("events.out.tfevents.*"):
                path.unlink()
            self._writer = SummaryWriter(str(self.folder), purge_step=0)
        for row in rows[self._written:]:
            for name, value in scalars(row):
                self._writer.add_scalar(name, value, row["epoch"])
        self._written = len(rows)
        self._writer.flush()


def scalars(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """(name, number) of what a row holds: nested names have slashes, as in `val/top1`, entries of a list their index,
    from 0, as in `sigma/3`. Tables and lists of more than LONGEST entries are left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from scalars(inner, f"{name}/{key}" if name else key)
    elif isinstance(value, list) and len(value) <= LONGEST and not any(isinstance(inner, list) for inner in value):
        for index, inner in enumerate(value):
            yield from scalars(inner, f"{name}/{index}")
    elif isinstance(value, (int, float)) and name != "epoch":
        yield name, value
