"""What a dual task learns, scored as a model is: how near to the annotated distributions it could come."""

from __future__ import annotations

import json

import torch

from ..data.items import UNKNOWN
from ..emotion_circle import class_distances, strategy1
from ..losses import dual_task_target
from ..metrics import distribution_metrics
from ..runs.identity import Identity, read_identity
from .groups import Groups, scores


def dual_task_targets(members: Groups) -> dict[str, list[dict[str, float]]]:
    """Of a panel's dual tasks, the `distribution_metrics` by seed of their targets against the annotated distributions
    of the test images, by a name; methods with the same target share an entry.

    The targets are made as in training (`dual_task_target`), with the true labels: a model that learns its task
    perfectly, from labels that are all right, has these figures. Runs that do not tell their settings and images are
    left out.
    """
    found: dict[str, tuple[list[str], list[dict[str, float]]]] = {}
    for key, runs in members.items():
        tuned = scores(runs, "last", "kl")
        seeds = [figures for run in runs
                 if run["seed"] in tuned and (figures := target_metrics(read_identity(run["folder"])))]
        if seeds:
            found.setdefault(json.dumps(seeds), ([], seeds))[0].append(key.method)
    return {f"target of {'; '.join(names)}": seeds for names, seeds in found.values()}


def target_metrics(identity: Identity) -> dict[str, float] | None:
    """The metrics of one run's target; None where it has no dual task, or no test image has label and distribution."""
    settings = identity.settings or {}
    if not settings.get("DUAL_TASK.ENABLED") or identity.splits is None:
        return None
    tree = identity.tree()
    rows = [(label, distribution) for _, label, _, distribution in tree["test"] if distribution and label != UNKNOWN]
    if not rows:
        return None
    labels, annotated = (torch.tensor(column) for column in zip(*rows))
    learnt = annotated
    if settings["TRAIN.SUPERVISION"] == "pseudo" or settings["DATASET.DISTRIBUTION_STRATEGY"] == "strategy1":
        distances = class_distances(tree["classnames"], settings["DATASET.CIRCLE"])
        learnt = strategy1(labels, distances, settings["DATASET.SIGMA_CONF"], settings["DATASET.EPSILON"])
    return distribution_metrics(dual_task_target(labels, learnt, settings["DUAL_TASK.LAMBDA"]), annotated)
