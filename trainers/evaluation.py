"""One pass over a loader in evaluation: plain features, predictions, metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clip.model import CLIP
from utils.data.loader import ViewLoader, micro_batches
from utils.errors import InputError
from utils.metrics import score
from utils.utils import Tunable

from . import distributed
from .statistics import StageStatistics

COLUMNS = {"label": "labels", "distribution": "distributions", "index": "index"}


@torch.no_grad()
def collect(loader: ViewLoader, compute: Callable[[dict], dict[str, Tensor]], what: str) -> dict[str, object]:
    """The columns that `compute` makes of parts of the batches, `labels` [n], `index` [n] and, where annotated,
    `distributions` [n, classes]: on the CPU, in the order of the images, each image once, whatever the number of
    processes.

    `unreadable` lists what was said of images that were left out. Raises InputError where none could be read.
    """
    shards = distributed.gather(_collect_shard(loader, compute, what))
    columns = {name: torch.cat([shard[name] for shard in shards if name in shard])
               for name in dict.fromkeys(chain(*shards)) if name != "unreadable"}
    unreadable = list(chain(*(shard["unreadable"] for shard in shards)))
    if not columns:
        raise InputError(f"none of the {what} images could be read: {unreadable[0] if unreadable else 'there is none'}")
    if len(shards) > 1:
        order = columns["index"].argsort()
        columns = {name: column[order] for name, column in columns.items()}
    return {**columns, "unreadable": unreadable}


def _collect_shard(loader: ViewLoader, compute: Callable[[dict], dict[str, Tensor]], what: str) -> dict[str, object]:
    """The columns of the images that are this process's."""
    columns = defaultdict(list)
    for batch in tqdm(loader, desc=what, leave=False, **distributed.bar_settings()):
        if not batch:  # none of its images could be read
            continue
        for micro in micro_batches(batch):
            for name, column in compute(micro).items():
                columns[name].append(column.cpu())
        for name, own in COLUMNS.items():
            if name in batch:
                columns[own].append(batch[name])
    return {**{name: torch.cat(column) for name, column in columns.items()}, "unreadable": loader.unreadable}


def plain_features(clip_model: CLIP, loader: ViewLoader, what: str = "features") -> dict[str, object]:
    """`features` [n, embed_dim] fp32 of unit length of a loader's weak views, and what `collect` adds to them."""
    device = clip_model.visual.proj.device

    def features(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images = batch["weak"].to(device)
        return {"features": F.normalize(clip_model.encode_image(images).float(), dim=-1)}

    return collect(loader, features, what)


def predict(model: Tunable, loader: ViewLoader, what: str = "evaluation",
            stages: StageStatistics | None = None) -> dict[str, object]:
    """`probabilities` [n, classes] of a loader's weak views, and what `collect` adds to them."""
    device = model.adapter.weight.device

    def probabilities(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        prediction = model(batch["weak"].to(device))
        if stages:
            stages.update(prediction, model.adapter, batch["label"])
        return {"probabilities": prediction.logits.softmax(-1)}

    return collect(loader, probabilities, what)


def evaluate(model: Tunable, loaders: dict[str, ViewLoader],
             references: dict[str, Tensor] | None = None) -> dict[str, dict[str, object]]:
    """The metrics of each split, as `score_split`. Where nothing is labelled, `references` holds what agreement is
    measured with: for each split, the classes [n] that the text classifier predicts."""
    return {split: score_split(model, loader, split, (references or {}).get(split))[0]
            for split, loader in loaders.items()}


def score_split(model: Tunable, loader: ViewLoader, split: str,
                reference: Tensor | None = None) -> tuple[dict[str, object], dict[str, object]]:
    """A split's metrics and what the stages say by themselves, and the outputs of `predict` that they are of; the same
    forward as in training. `unreadable` lists what was said of images that were left out, if there are any."""
    stages = StageStatistics()
    outputs = predict(model, loader, split, stages)
    stages.gather()
    metrics = score(outputs["probabilities"], outputs["labels"], outputs.get("distributions"),
                    reference) | stages.result()
    if outputs["unreadable"]:
        metrics["unreadable"] = outputs["unreadable"]
    return metrics, outputs
