"""scripts/linear_probe.py: the yardstick is a regression at its optimum, and its record is kept as a run's is."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from scripts import linear_probe
from utils.demo.faces import draw_dataset
from utils.errors import InputError


@pytest.fixture
def run(tmp_path):
    """Probe a small demo."""
    draw_dataset(tmp_path / "data" / "demo", train_per_class=6, test_per_class=4)

    def start(*arguments: str) -> dict:
        return linear_probe.main([*arguments, "--dataset-config-file", "demo", "--root", str(tmp_path / "data"),
                                  "--output-dir", str(tmp_path / "out"), "--workers", "0"])

    return start


@pytest.mark.parametrize("weight_decay", [1e-2, 1e-4])
def test_the_fit_is_where_the_gradient_vanishes(weight_decay):
    """Of mean cross-entropy + λ‖W‖²: (p − t)ᵀx / n + 2 λ W = 0 and Σ (p − t) = 0."""
    features = F.normalize(torch.randn(60, 5), dim=-1)
    targets = torch.randn(60, 3).softmax(-1)
    weight, bias = linear_probe.fit_probe(features, targets, weight_decay)
    error = (features @ weight.t() + bias).softmax(-1) - targets
    assert (error.t() @ features / 60 + 2 * weight_decay * weight).abs().max() < 1e-4
    assert error.mean(0).abs().max() < 1e-4 and weight.abs().max() > 0.01


@pytest.mark.parametrize("targets", ["labels", "votes"])
def test_a_probe_and_its_record(run, tmp_path, targets):
    result = run("--targets", targets, "DATASET.VAL_FRACTION", "0.2")
    folder = tmp_path / "out" / "demo" / "LinearProbe" / "demo_clip" / f"{targets}-seed1"
    assert json.loads((folder / "final.json").read_text(encoding="utf-8")) == result
    assert result["splits"]["test"]["tuned"]["top1"] > 0.3 and result["targets"] == targets  # chance is 1/6
    assert run("--targets", targets, "DATASET.VAL_FRACTION", "0.2")["splits"] == result["splits"]
    with pytest.raises(InputError, match=r"NUM_SHOTS is \[-1\] there and \[2\] here"):
        run("--targets", targets, "DATASET.VAL_FRACTION", "0.2", "DATASET.NUM_SHOTS", "2")


def test_what_a_probe_cannot_do_is_told(run):
    with pytest.raises(InputError, match="demo's val split is empty"):
        run("DATASET.VAL_FRACTION", "0")
    with pytest.raises(InputError, match="--eval-only"):
        run("--eval-only", "--model-dir", "x")
