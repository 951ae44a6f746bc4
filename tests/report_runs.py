"""Records of two methods with two seeds each, for the tests of charts and pages."""

from __future__ import annotations

from pathlib import Path

from tests.test_results import write_run
from utils.report.groups import Groups, find_runs

BINS = [[0, 0, 0.0]] * 13 + [[10, 4, 9.0], [30, 27, 29.4]]  # mean confidences of 90 and 98 %, right: 40 and 90 %


def rows(*accuracies: float) -> list[dict]:
    """A row per epoch as a staged run writes it, without the losses of epoch 0; training took 2 s, 4 s, 6 s …"""
    first = {"epoch": 0, "test": {"top1": accuracies[0], "stage_top1": [0.2, accuracies[0]]}}
    return [first, *({"epoch": epoch, "loss": 2.0 / epoch, "cross_entropy": 1.5 / epoch, "consistency": 0.5 / epoch,
                      "lr": {"prompts": 1e-4}, "sigma": [1.0, 1.1], "stage_weights": [0.1, 0.9],
                      "gradient_norms": {"prompts": [None, 0.5]}, "pseudo_label_accuracy": 0.5,
                      "grad_norm": 2.0, "train_seconds": 2.0 * epoch,
                      "test": {"top1": accuracy, "kl": 0.25 / epoch, "ece": 0.1, "stage_top1": [0.3, accuracy],
                               "stage_cka": [0.4, 1.0]}}
                     for epoch, accuracy in enumerate(accuracies[1:], start=1))]


def two_methods(root: Path) -> Groups:
    """MultiLayerLaFTer at 80 and 90 %, LaFTer 10 points below; a name that HTML must escape."""
    for seed, last in ((1, 0.8), (2, 0.9)):
        write_run(root, f"demo/a/a&b-seed{seed}", {}, seed=seed, classnames=["cat", "dog"],
                  splits={"test": {"zero_shot": {"top1": 0.6, "per_class_accuracy": [0.2, 1.0]},
                                   "last": {"top1": last, "confusion_matrix": [[3, 1], [0, 4]], "reliability": BINS,
                                            "per_class_accuracy": [0.75, 1.0]}}})
        write_run(root, f"demo/b/seed{seed}", {"last": last - 0.1}, seed=seed, trainer="LaFTer")
    groups = find_runs(root)
    for runs in groups.values():
        for run in runs:
            run["rows"] = rows(0.5, 0.7, run["splits"]["test"]["last"]["top1"])
    return groups
