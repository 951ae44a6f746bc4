"""A finished run's model on images: restored for evaluation or prediction, and its predictions as tables."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm
from yacs.config import CfgNode

import clip
from clip.model import CLIP
from utils.config import resolve_path
from utils.data.image_formats import HINTS
from utils.data.images import Decoding, choose_decoding, read_image
from utils.data.listing import in_brackets, list_images, tell_left_out
from utils.data.loader import PARAMS, ViewLoader, micro_batches
from utils.data.shared_memory import affordable_workers, batch_bytes
from utils.data.views import WeakView, build_views
from utils.errors import InputError
from utils.files import read_text, write_whole
from utils.report.predictions import SHOWN
from utils.report.thumbnails import make_thumbnail
from utils.runs.checkpoint import find_checkpoint, load_checkpoint
from utils.utils import Tunable
from utils.values import with_value

from .build import build_student
from .calibration import calibrate, check_calibration, enough_images
from .distributed import bar_settings
from .state import load_tuned

log = logging.getLogger(__name__)


def read_run(folder: Path, epoch: int | None, cfg: CfgNode, classnames: Sequence[str] | None = None,
             expected: dict[str, object] | None = None) -> dict:
    """The checkpoint of a run's last epoch, or of `epoch`; `expected` is what it must agree in, as in load_checkpoint.

    Raises FileNotFoundError for a folder or an epoch that is not there, InputError for another trainer's checkpoint
    or of another backbone, and, by name, for one that knows other classes than `classnames`; their order may differ.
    """
    state = load_checkpoint(find_checkpoint(folder, epoch), {"trainer": cfg.TRAINER.NAME, **(expected or {})})
    here, there = cfg.MODEL.BACKBONE.NAME, CfgNode.load_cfg(state["config"]).MODEL.BACKBONE.NAME
    official = clip.available_models()
    if here != there and here in official and (there in official or resolve_path(there).exists()):  # before a download
        raise InputError(f"{folder} was trained on {there}, not on {here}: leave --backbone out")
    known = state["classnames"]
    if classnames is not None and set(classnames) != set(known):
        new = [name for name in classnames if name not in known]
        lost = [name for name in known if name not in classnames]
        told = [f"it does not know {', '.join(map(repr, new[:5]))}" if new else "",
                f"{cfg.DATASET.NAME} has no {', '.join(map(repr, lost[:5]))}" if lost else ""]
        raise InputError(f"{folder} was trained on other classes than those of {cfg.DATASET.NAME}: "
                         + " and ".join(filter(None, told)))
    return state


def restore(cfg: CfgNode, clip_model: CLIP, state: dict) -> Tunable:
    """The model of a run's checkpoint. Raises InputError where it was trained on another backbone, or activation."""
    if state["clip_hash"] != clip.weights_hash(clip_model):
        raise InputError(f"the run was trained on another backbone than {cfg.MODEL.BACKBONE.NAME}")
    if state["quick_gelu"] != clip_model.quick_gelu:
        raise InputError(f"the run was trained with MODEL.BACKBONE.QUICK_GELU {state['quick_gelu']}, and "
                         f"{cfg.MODEL.BACKBONE.NAME} is used with {clip_model.quick_gelu}: set it to the run's")
    fresh = with_value(cfg, "PROMPT_INIT", "uniform")  # the checkpoint's prompts follow: none need be drawn from images
    model = build_student(fresh, clip_model, None, len(state["classnames"]), None)
    load_tuned(model, state["model"])
    model.start_epoch(state["epoch"] - 1)
    return model


def find_files(path: Path) -> list[Path]:
    """One image; all images below a folder, sorted; or the paths in a .txt file, relative to its folder.

    Only in a folder are other files left out, which one line tells; images that cannot be opened here are not: their
    rows say why. Raises FileNotFoundError, InputError where nothing is found.
    """
    if not path.exists():
        raise FileNotFoundError(f"--predict {path} does not exist; give an image, a folder or a .txt list of files")
    left_out: Counter[str] = Counter()
    if path.is_dir():
        files = list_images(path, left_out, below=True, also=HINTS)
    elif path.suffix.lower() == ".txt":
        files = [path.parent / line.strip() for line in read_text(path).splitlines() if line.strip()]
    else:
        files = [path]
    if not files:
        raise InputError(f"{path} names no image to predict{in_brackets(left_out)}")
    tell_left_out(left_out)
    return files


class ImageFiles(Dataset):
    """Files as `ImageDataset` gives them, view `weak`, each with its `error`: why it could not be read, or nothing;
    and the first SHOWN, which a page has room for, with their `thumbnail`, a JPEG: none is decoded for it again."""

    def __init__(self, files: Sequence[Path], view: WeakView, decoding: Decoding):
        self.files, self.views, self.decoding = list(files), {"weak": view}, decoding

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, object]:
        view, message, thumbnail = self.views["weak"], "", b""
        try:
            picture = read_image(self.files[index], self.decoding)
            pixels = view.prepare(picture)
            thumbnail = make_thumbnail(picture) if index < SHOWN else b""
        except InputError as error:
            pixels, message = np.zeros(view.stored_shape(1, 1), dtype=np.uint8), str(error)
        image, params = view.sample(pixels, np.random.default_rng(0))
        return {"weak": image, "weak" + PARAMS: params, "error": message, "thumbnail": thumbnail}


def check_calibrated(cfg: CfgNode, images: int, classes: int, calibration: str) -> None:
    """InputError where predictions cannot be calibrated: for too few images, and of a dual-task model."""
    if calibration and cfg.DUAL_TASK.ENABLED:
        raise InputError("--calibrate is for models that classify: a dual-task model predicts distributions, and how "
                         "much of each emotion a pile of images evokes is what it is asked for: leave it out")
    check_calibration(calibration or "none", images, classes, cfg.PSEUDO_LABEL.PRIOR)


def class_probabilities(logits: Tensor, calibration: str, prior: Sequence[float] = ()) -> Tensor:
    """Logits [n, classes] of n images → probabilities, calibrated by these images as `calibrate` says, or not ("").
    What `std` has divided by each class's standard deviation is multiplied by their mean: confidences keep their
    size."""
    if not calibration:
        return logits.softmax(-1)
    calibrated = calibrate(logits, calibration, prior)
    if calibration == "std":
        calibrated = calibrated * logits.std(0, correction=0).mean()
    return calibrated if calibration == "balance" else calibrated.softmax(-1)


@torch.no_grad()
def predict_files(model: Tunable, files: Sequence[Path], classnames: Sequence[str], cfg: CfgNode,
                  calibration: str = "") -> Iterator[tuple[dict, bytes]]:
    """A row per file: `file`, `prediction` (the most probable class), `confidence` (its probability), `probabilities`
    {class: p} and, of a dual-task model, `distribution`. An unreadable file's row has `file` and `error`. With each
    row the file's thumbnail, a JPEG, as `ImageFiles` has it.

    With a `calibration`, as `calibrate` has them, all that is told is corrected by the statistics of these images; the
    rows name it as `calibration`, and as `uncalibrated` the class that they would tell otherwise. Where too few of them
    can be read, they are not, and the rows are as ever.

    A dual-task model has one output for both tasks, trained towards the distribution blended with the label: its
    probabilities are what the metrics of distributions score, and what `distribution` repeats.
    """
    size = model.clip.visual.input_resolution
    weak, _ = build_views(size, [], cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, cfg.INPUT.INTERPOLATION)
    batch_size = cfg.DATALOADER.TEST.BATCH_SIZE
    workers = min(affordable_workers(cfg.DATALOADER.NUM_WORKERS, batch_bytes([weak], batch_size)),
                  -(-len(files) // batch_size))
    loader = ViewLoader(ImageFiles(files, weak, choose_decoding(cfg, own=True)), model.adapter.weight.device, workers,
                        cfg.DATALOADER.TIMEOUT, batch_size=batch_size)
    logits, errors, thumbnails = [], [], []
    for batch in tqdm(loader, desc="prediction", leave=False, **bar_settings()):
        logits += [model(micro["weak"]).logits for micro in micro_batches(batch)]
        errors += batch["error"]
        thumbnails += batch["thumbnail"]
    logits = torch.cat(logits)[[not error for error in errors]]
    calibration = calibration if enough_images(*logits.shape) else ""
    plain = logits.argmax(1).tolist()
    predicted = iter(zip(class_probabilities(logits, calibration, cfg.PSEUDO_LABEL.PRIOR).tolist(), plain))
    for file, error, thumbnail in zip(files, errors, thumbnails):
        if error:
            yield {"file": str(file), "error": error}, thumbnail
            continue
        row, otherwise = next(predicted)
        shares = dict(zip(classnames, row))
        best = max(shares, key=shares.get)
        told = {"file": str(file), "prediction": best, "confidence": shares[best], "probabilities": shares}
        if cfg.DUAL_TASK.ENABLED:
            told["distribution"] = shares
        if calibration:
            told |= {"calibration": calibration, "uncalibrated": classnames[otherwise]}
        yield told, thumbnail


def write_predictions(rows: Sequence[dict], classnames: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """predictions.csv (a column `p(<class>)` per class, and where calibrated `calibration` and `uncalibrated`) and
    predictions.jsonl (the rows as they are) in `folder`.

    The table opens with a byte order mark: without it Excel takes UTF-8 for the system's own encoding. What is no
    character in a file's name stands as JSON escapes it, so that the lines give back the very name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    also = [name for name in ("calibration", "uncalibrated") if any(name in row for row in rows)]
    writer.writerow(["file", "prediction", "confidence", *also, *(f"p({name})" for name in classnames), "error"])
    for row in rows:
        shares = row.get("probabilities", {})
        writer.writerow([row["file"], row.get("prediction", ""), _rounded(row.get("confidence")),
                         *(row.get(name, "") for name in also), *(_rounded(shares.get(name)) for name in classnames),
                         row.get("error", "")])
    paths = folder / "predictions.csv", folder / "predictions.jsonl"
    texts = "\ufeff" + table.getvalue(), "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for path, text in zip(paths, texts):
        write_whole(path, text.encode(errors="backslashreplace"))
    return paths


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"
