"""A linear probe on the frozen plain encoder: the yardstick that tuning has to beat, on the same split.

    python scripts/linear_probe.py --dataset-config-file emotion6 --root data --backbone weights/vitb16_image_int8.pt \
        --seed 1 INPUT.SIZE 112

Takes LaFTer.py's flags for data, backbone and seed and `--targets labels|votes`: what the probe learns. Its record lies
beside the trainers' runs, as OUTPUT_DIR/<dataset>/LinearProbe/<backbone>/<targets>-<exp-name or seed>.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it runs from any folder

import clip
from clip.model import CLIP
from trainers.build import build_loaders, environment, load_clip
from trainers.evaluation import plain_features
from trainers.precision import settle_precision
from trainers.program import exit_with_message
from utils.config import IMAGE_PHASE, load_config
from utils.data.items import UNKNOWN, Splits
from utils.datasets.table import load_dataset
from utils.errors import InputError
from utils.flags import parse_flags
from utils.metrics import score
from utils.results import format_summary
from utils.runs.identity import describe_data, identify
from utils.runs.logs import start_logging
from utils.runs.record import Run, run_folder

log = logging.getLogger("linear_probe")
WEIGHT_DECAYS = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


def fit_probe(features: Tensor, targets: Tensor, weight_decay: float) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression by L-BFGS: (weight [classes, d], bias [classes]).

    features [n, d] of unit length; targets [n, classes], each row a distribution. Minimises the mean cross-entropy
    plus weight_decay · ‖weight‖².
    """
    weight = torch.zeros(targets.shape[1], features.shape[1], requires_grad=True)
    bias = torch.zeros(targets.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight.t() + bias, targets) + weight_decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def check_splits(splits: Splits) -> None:
    """InputError where the probe has nothing to learn from, to choose by or to be scored on."""
    for name in ("train", "val", "test"):
        items = getattr(splits, name)
        if not items or any(item.label == UNKNOWN for item in items):
            raise InputError(f"a linear probe needs labelled images in every split; {splits.name}'s {name} split "
                             + ("has images without a label" if items else "is empty (see DATASET.VAL_FRACTION)"))


def main(argv: list[str] | None = None) -> dict:
    """Probe the data set that the command line names, and record it; returns the content of final.json."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--targets", choices=("labels", "votes"), default="labels")
    own, rest = parser.parse_known_args(argv)
    flags = parse_flags(rest)
    if flags.model_dir or flags.list_datasets:
        raise InputError("--eval-only, --predict, --model-dir and --list are LaFTer.py's alone")
    useless = [key for key in (*IMAGE_PHASE, "TEXT.MODE", "TEXT.EPOCHS", "TRAINER.NAME") if key in flags.values]
    if useless:
        raise InputError(f"a linear probe has no use for the flag that sets {useless[0]}; leave it out")
    cfg = load_config(flags.dataset_config_file, flags.config_file, flags.values, flags.options)
    splits = load_dataset(cfg)
    check_splits(splits)
    folder = run_folder(cfg, splits.name, trainer="LinearProbe")
    run = Run(folder.with_name(f"{own.targets}-{folder.name}"), resume=True)
    run.lock()
    try:
        cfg = settle_precision(cfg, run.folder)
        identity = identify(cfg, splits)
        run.check(identity)
        with start_logging(run.folder):
            clip_model = load_clip(cfg)
            identity = dataclasses.replace(identity, weights=clip.weights_hash(clip_model),
                                           quick_gelu=clip_model.quick_gelu)
            run.check(identity)
            result = probe(cfg, splits, own.targets, clip_model) | {
                "data": describe_data(splits), "weights": identity.weights}
            run.start(cfg, identity)
            run.finish(result)
            log.info("weight decay %g, chosen on validation", result["weight_decay"])
            log.info(format_summary(result))
    finally:
        run.unlock()
    return result


def probe(cfg: CfgNode, splits: Splits, learnt: str, clip_model: CLIP) -> dict:
    """Fit a probe for each weight decay, choose by validation accuracy, score it on the validation and test splits;
    returns the content of final.json. `learnt`: `labels` or `votes`."""
    loaders = build_loaders(cfg, splits, clip_model.visual.input_resolution, clip_model.visual.proj.device)
    data = {split: plain_features(clip_model, loaders[name], split)
            for split, name in (("train", "plain"), ("val", "val"), ("test", "test"))}
    if learnt == "votes" and "distributions" not in data["train"]:
        raise InputError("--targets votes needs a data set with annotated distributions")
    targets = (data["train"]["distributions"] if learnt == "votes"
               else F.one_hot(data["train"]["labels"], len(splits.classnames)).float())
    scored = {}
    for weight_decay in WEIGHT_DECAYS:
        weight, bias = fit_probe(data["train"]["features"], targets, weight_decay)
        scored[weight_decay] = {split: score((columns["features"] @ weight.t() + bias).softmax(-1),
                                             columns["labels"], columns.get("distributions"))
                                for split, columns in data.items() if split != "train"}
    best = max(WEIGHT_DECAYS, key=lambda weight_decay: scored[weight_decay]["val"]["top1"])
    return {"dataset": splits.name, "trainer": "LinearProbe", "backbone": cfg.MODEL.BACKBONE.NAME, "seed": cfg.SEED,
            "supervision": "labels", "targets": learnt, "weight_decay": best, "classnames": splits.classnames,
            "environment": environment(clip_model),
            "splits": {split: {"tuned": metrics} for split, metrics in scored[best].items()}}


if __name__ == "__main__":
    exit_with_message(main)
