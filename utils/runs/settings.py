"""Which settings a run has: the tuned defaults, or the original program's in configs/trainers/LaFTer/published.yaml."""

from __future__ import annotations

from yacs.config import CfgNode

from ..config import PROJECT, find_config, flatten, load_config
from ..files import read_yaml


def settings_label(cfg: CfgNode) -> str:
    """`tuned`, or `published` where published.yaml was read, with the keys that have other values than it gives them;
    TEXT.EPOCHS, which differs between data sets, is compared with the data set's own YAML."""
    if cfg.TRAINER.SETTINGS == "tuned":
        return "tuned"
    dataset = PROJECT / "configs" / "datasets" / f"{cfg.DATASET.NAME}.yaml"
    reference = load_config(str(dataset) if dataset.is_file() else "", "published", {"DATASET.NAME": cfg.DATASET.NAME})
    here, there = dict(flatten(cfg)), dict(flatten(reference))
    keys = [*dict(flatten(read_yaml(find_config("published", "trainers/LaFTer")))), "TEXT.EPOCHS"]
    changed = ", ".join(key for key in keys if here[key] != there[key])
    return f"published, changed: {changed}" if changed else "published"
