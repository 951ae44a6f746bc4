"""Finished runs, read from their records: methods with a run per seed, and the scores that methods are compared by."""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from ..files import read_text
from ..metrics import TEMPERATURES
from ..runs.identity import Identity, read_identity
from ..runs.record import backbone_label, read_rows

METHODS = {"zero_shot": "zero-shot", "text_classifier": "text classifier", "untrained": "before the first step",
           "last": "tuned, last epoch", "best": "tuned, best on validation", "tuned": "tuned"}


class Key(NamedTuple):
    """What runs that differ in the seed alone have in common."""

    dataset: str
    supervision: str
    backbone: str
    trainer: str
    experiment: str  # the folder's name without the seed
    source: str = ""  # the runs' output folder, below the one that is reported
    settings: str = ""  # what stands for the tuned defaults is not shown

    @property
    def method(self) -> str:
        told = [textwrap.shorten(self.settings, 60, placeholder=" …")] if self.settings else []
        if self.experiment and self.experiment != self.settings.partition(",")[0]:  # a folder's name may say it too
            told.append(self.experiment)
        return self.trainer + (f" ({', '.join(told)})" if told else "")

    @property
    def panel(self) -> tuple[str, str, str]:
        """What must be equal for methods to be compared: (dataset, after the source if there is one; supervision;
        backbone). Runs from another output folder may have other settings under the same name."""
        return f"{self.source}/{self.dataset}".lstrip("/"), self.supervision, self.backbone


Groups = dict[Key, list[dict]]


def find_runs(root: Path) -> Groups:
    """Finished runs under `root`; seeds share a group. Each is its final.json with its `rows`, its `folder`, and its
    `place`, that folder's path below `root`.

    Raises InputError for a damaged final.json, for two runs of one method that have the same seed, for two that have
    different settings, and for no run.
    """
    groups = defaultdict(list)
    for path in sorted(root.rglob("final.json"), key=Path.as_posix):
        try:
            result = json.loads(read_text(path))
            experiment = re.sub(r"[-_]?seed\d+$", "", path.parent.name)
            key = Key(result["dataset"], result["supervision"], backbone_label(result["backbone"]), result["trainer"],
                      experiment, "/".join(path.parent.relative_to(root).parts[:-4]),
                      str(result.get("settings", "tuned")).removeprefix("tuned"))
            twin = next((run["folder"] for run in groups[key] if run["seed"] == result["seed"]), None)
        except json.JSONDecodeError as error:
            raise InputError(f"{path} is no valid JSON: {error}") from error
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is no result of a run: {error!r}; delete it, or its folder") from error
        if twin:
            raise InputError(f"{twin} and {path.parent} are one method with one seed, {result['seed']}: rename one of "
                             "the folders, or report them apart")
        groups[key].append(result | {"rows": read_rows(path.parent / "metrics.jsonl"), "folder": path.parent,
                                     "place": path.parent.relative_to(root).as_posix()})
    if not groups:
        raise InputError(f"no finished run (final.json) under {root}")
    for runs in groups.values():
        check_settings(runs)
    return dict(sorted(groups.items()))


def check_settings(runs: Sequence[dict]) -> None:
    """InputError where runs that would share a row differ in more than the seed and its splits, as far as both tell."""
    first, *others = ((run["folder"], replace(read_identity(run["folder"]), splits=None)) for run in runs)
    for folder, identity in others:
        for difference in _shared(first[1], identity).differences(_shared(identity, first[1])):
            raise InputError(f"{folder} would share a row with {first[0]}, but {difference}: rename the folder of one "
                             "(what stands before its seed tells methods apart), or report them apart")


def _shared(identity: Identity, other: Identity) -> Identity:
    """An identity with those settings alone, without the seed, that the other tells too."""
    told = {key: value for key, value in (identity.settings or {}).items() if key in (other.settings or {})}
    return replace(identity, settings={**told, "SEED": None})


def panels(groups: Groups) -> dict[tuple[str, str, str], Groups]:
    """The groups by (dataset, supervision, backbone): those within a panel are compared."""
    found: dict[tuple[str, str, str], Groups] = defaultdict(dict)
    for key, runs in groups.items():
        found[key.panel][key] = runs
    return dict(found)


def choose_baseline(members: Groups, wanted: str = "") -> Key:
    """The method of a panel that others are compared with: the one called `wanted`, by its trainer, experiment or both
    as in the table; else the experiment `base`, else the first of LaFTer, else the first; tuned ones come first."""
    return min(members, key=lambda key: (not is_called(key, wanted), not tuned_scores(members[key], "top1"),
                                         key.experiment != "base", key.trainer != "LaFTer", key))


def is_called(key: Key, name: str) -> bool:
    """Whether a method goes by this name: its trainer's, its experiment's, or both as in the tables."""
    return bool(name) and name in (key.method, key.experiment, key.trainer)


def differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    """Ours minus theirs, seed by seed, over the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def scores(runs: Sequence[dict], method: str, metric: str = "top1") -> dict[int, float]:
    """A test-split metric of one of METHODS by seed, without the runs that lack it."""
    scored = {run["seed"]: run["splits"].get("test", {}).get(method, {}) for run in runs}
    return {seed: metrics[metric] for seed, metrics in scored.items() if metric in metrics}


def tuned_scores(runs: Sequence[dict], metric: str) -> dict[int, float]:
    """A test-split metric of the tuned model: after the last epoch, or of a probe."""
    return scores(runs, "last", metric) or scores(runs, "tuned", metric)


def scaled_kl(runs: Sequence[dict], method: str) -> dict[int, tuple[float, float]]:
    """(KL, T) by seed of one of METHODS: the test split's KL divergence at the temperature T that gives the validation
    split's the least; without the runs that recorded none."""
    found = {}
    for seed, test in scores(runs, method, "kl_by_temperature").items():
        (val,) = (run["splits"].get("val", {}).get(method, {}) for run in runs if run["seed"] == seed)
        if known := val.get("kl_by_temperature"):
            best = known.index(min(known))
            found[seed] = test[best], TEMPERATURES[best]
    return found


def shared_scores(members: Groups, method: str, metric: str) -> list[tuple[list[Key], list[dict]]]:
    """Which of a panel's methods have one and the same zero-shot or text classifier: ([keys], [a run per seed]) for
    each that is told apart by this metric of a seed that both have."""
    found: list[tuple[list[Key], dict[int, dict]]] = []
    for key, runs in members.items():
        if not (own := scores(runs, method, metric)):
            continue
        scored = {run["seed"]: run for run in runs if run["seed"] in own}
        for keys, known in found:
            theirs = scores(list(known.values()), method, metric)
            if all(math.isclose(own[seed], theirs[seed], abs_tol=1e-4) for seed in own.keys() & theirs.keys()):
                keys.append(key)
                known.update(scored)
                break
        else:
            found.append(([key], scored))
    return [(keys, list(known.values())) for keys, known in found]


def added_tables(runs: Sequence[dict], method: str, name: str) -> list[list[float]]:
    """A table of counts of one of METHODS on the test split, such as `reliability`, added over the seeds; [] where none
    is recorded."""
    found = list(scores(runs, method, name).values())
    return [[sum(cells) for cells in zip(*rows)] for rows in zip(*found)]


def find_confusion(runs: Sequence[dict]) -> list[list[int]]:
    """The confusion matrices of the tuned models on the test split, added over the seeds; [] where none is recorded."""
    return added_tables(runs, "last", "confusion_matrix") or added_tables(runs, "tuned", "confusion_matrix")
