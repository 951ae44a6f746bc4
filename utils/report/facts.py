"""What runs were, beside their scores: their data, date, machine and time, the settings that tell methods apart, and
the accuracy of each class."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import timedelta

from ..runs.identity import BY_CONTENT, HARMLESS, Identity, read_identity
from .groups import METHODS, Groups, Key, panels, scores, shared_scores, tuned_scores
from .tables import Table, spread


def runs_table(groups: Groups) -> Table:
    """A row per run: images, date, machine, training time and the time of the whole run; what old records do not tell
    is empty."""
    table = [["trainer", "data", "supervision", "backbone", "seed", "epochs", "best epoch", "training images",
              "validation images", "test images", "date", "device", "threads", "torch", "trained parameters",
              "training", "whole run"]]
    for key, runs in groups.items():
        for run in runs:
            data, machine = run.get("data", {}), run.get("environment", {})
            device = machine.get("device", "")
            counts = [data.get(split) for split in ("train", "val", "test")]
            trained = [count for kind, count in run.get("parameters", {}).items() if kind != "total"]
            table.append([key.method, *key.panel, *map(_text, (
                run["seed"], run.get("epochs"), run.get("best_epoch"), *counts,
                str(machine.get("date", "")).replace("T", " ").replace("+00:00", " UTC"),
                machine.get("processor", device) if device == "cpu" else device, machine.get("threads"),
                machine.get("torch"), f"{sum(trained):,}" if trained else None, duration(training_seconds([run])),
                duration(run.get("seconds", 0))))])
    return table


def _text(value: object) -> str:
    return "" if value is None else str(value)


def training_seconds(runs: Sequence[dict]) -> float:
    """The seconds of all epochs' training, without evaluation and what comes before the first epoch."""
    return sum(row.get("train_seconds", 0) for run in runs for row in run["rows"])


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, without a fraction; nothing for none."""
    return str(timedelta(seconds=round(seconds))) if seconds else ""


def settings_table(groups: Groups, reference: Mapping[tuple, Key]) -> Table:
    """In which settings each method differs from its panel's `reference`, by panel; those that change no number and the
    seed are left out. Only the head where there is nothing to compare."""
    table = [["trainer", "data", "supervision", "backbone", "against", "settings"]]
    for panel, members in panels(groups).items():
        base = read_identity(members[reference[panel]][0]["folder"])
        for key, runs in members.items():
            if key != reference[panel]:
                told = setting_changes(base, read_identity(runs[0]["folder"]))
                table.append([key.method, *panel, reference[panel].method, told])
    return table


def setting_changes(base: Identity, other: Identity) -> str:
    """`KEY value (base's value)` of the settings that the other has otherwise than the base."""
    if base.settings is None or other.settings is None:
        return "not recorded"
    told = [f"{key} {_short(other.settings.get(key))} ({_short(base.settings.get(key))})"
            for key in sorted((base.settings.keys() | other.settings.keys()) - HARMLESS - BY_CONTENT - {"SEED"})
            if base.settings.get(key) != other.settings.get(key)]
    texts = [f"{key}: another file" for key in sorted((base.texts or {}).keys() | (other.texts or {}).keys())
             if None not in (base.texts, other.texts) and base.texts.get(key) != other.texts.get(key)]
    return ", ".join([*told, *texts]) or "none"


def _short(value: object, length: int = 60) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= length else text[:length - 1] + "…"


def class_table(members: Groups) -> Table:
    """The accuracy of each class in per cent on the test split, of zero-shot, the text classifier and the tuned models;
    only the head where none is recorded."""
    columns: dict[str, list[list[float | None]]] = {}
    for method in ("zero_shot", "text_classifier"):
        shared = shared_scores(members, method, "top1")
        for keys, runs in shared:
            of = f" of {'; '.join(key.method for key in keys)}" if len(shared) > 1 else ""
            columns[METHODS[method] + of] = list(scores(runs, method, "per_class_accuracy").values())
    for key, runs in members.items():
        columns[key.method] = list(tuned_scores(runs, "per_class_accuracy").values())
    columns = {name: seeds for name, seeds in columns.items() if seeds}
    classnames = next((run["classnames"] for runs in members.values() for run in runs if "classnames" in run), [])
    counts = _class_counts(members)
    table = [["class", *["images"] * bool(counts), *(f"{name} ↑" for name in columns)]]
    for label, name in enumerate(classnames if columns else ()):
        cells = [spread([100 * seed[label] for seed in seeds if seed[label] is not None]) for seeds in columns.values()]
        table.append([name, *([counts[label]] if counts else []), *cells])
    return table


def _class_counts(members: Groups) -> list[str]:
    """The test images of each class, the mean over the seeds' splits; [] where no confusion matrix tells."""
    for runs in members.values():
        for method in ("last", "tuned", "zero_shot"):
            if found := scores(runs, method, "confusion_matrix"):
                seeds = [[sum(row) for row in matrix] for matrix in found.values()]
                return [f"{statistics.mean(counts):.4g}" for counts in zip(*seeds)]
    return []
