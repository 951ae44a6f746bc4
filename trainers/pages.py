"""What a finished run's model says of images, as pages to look at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from utils.data.items import UNKNOWN, Splits
from utils.data.loader import ViewLoader
from utils.datasets.folder import find_label
from utils.report.predictions import MISTAKES, SHOWN, Shown, write_page
from utils.report.thumbnails import read_thumbnails

from .distributed import bar_settings

log = logging.getLogger(__name__)


def show_files(path: Path, rows: Sequence[dict], thumbnails: Sequence[bytes], classnames: Sequence[str], name: str,
               note: str) -> None:
    """Write the page of the rows and thumbnails of `predict_files`, which are predictions of `name`. Where each file
    lies in a folder called like a class, as in the data set `folder`, that is its label. Of more than SHOWN it has the
    first, and the reasons of all that could not be read."""
    files = [Path(row["file"]) for row in rows]
    folders = {file.parent.name: UNKNOWN for file in files}
    known = {folder: find_label(folder, list(classnames)) for folder in folders}
    notes = [note]
    if None not in known.values():
        folders = known
        read = [(row["prediction"], folders[file.parent.name]) for row, file in zip(rows, files) if "error" not in row]
        right = sum(prediction == classnames[label] for prediction, label in read)
        notes.append("The folders are called like classes and are taken as labels: "
                     f"{right:,} of {len(read):,} predictions are right.")
    if calibrations := {row["calibration"] for row in rows if "calibration" in row}:
        notes.append(f"Calibrated by these images' own statistics ({', '.join(calibrations)}).")
    if len(rows) > SHOWN:
        notes.append(f"Here are the first {SHOWN:,} of {len(rows):,} images; predictions.csv has all.")
    images = [Shown(file, list(row.get("probabilities", {}).values()), row.get("error", ""), folders[file.parent.name],
                    thumbnail=thumbnail)
              for place, (file, row, thumbnail) in enumerate(zip(files, rows, thumbnails))
              if place < SHOWN or "error" in row]
    write_page(path, f"Predictions of {name}", notes, images, classnames)


def show_split(path: Path, splits: Splits, loader: ViewLoader, outputs: dict, note: str) -> None:
    """Write the page of the test images and of `outputs`, what `predict` gave of their `loader`. Of more than SHOWN it
    has those that `choose_shown` names."""
    places = {index: place for place, index in enumerate(outputs["index"].tolist())}
    chosen = choose_shown(outputs, len(splits.test))
    left_out = f"Here are {len(chosen):,} of {len(splits.test):,} images." if len(chosen) < len(splits.test) else ""
    thumbnails = read_thumbnails([splits.test[index].path for index in chosen], loader.dataset.decoding,
                                 loader.num_workers)
    images = []
    for index, read in zip(chosen, tqdm(thumbnails, "thumbnails", len(chosen), leave=False, **bar_settings())):
        item, thumbnail = splits.test[index], read if isinstance(read, bytes) else b""
        if index in places:
            images.append(Shown(item.path, outputs["probabilities"][places[index]].tolist(), "", item.label,
                                item.distribution, thumbnail))
        else:
            images.append(Shown(item.path, error=f"{item.path} was left out" if thumbnail else str(read)))
    write_page(path, f"{splits.name}: the test images", [note, *filter(None, [left_out])], images, splits.classnames)
    log.info("the test images and what the model says of them: %s", path)


def choose_shown(outputs: dict, count: int) -> list[int]:
    """Which of a split's `count` images its page shows: all, or SHOWN evenly chosen, the surest mistakes and those that
    could not be read."""
    if count <= SHOWN:
        return list(range(count))
    confidence, predicted = outputs["probabilities"].max(1)
    mistakes = ((outputs["labels"] != UNKNOWN) & (outputs["labels"] != predicted)).nonzero().squeeze(1)
    surest = mistakes[confidence[mistakes].argsort(descending=True)[:MISTAKES]]
    unread = {*range(count)} - {*outputs["index"].tolist()}
    return sorted({*range(0, count, -(-count // SHOWN)), *outputs["index"][surest].tolist(), *unread})
