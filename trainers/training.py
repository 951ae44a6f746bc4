"""The training loop: one pass over the training images, and all epochs."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from utils.data.items import UNKNOWN
from utils.data.loader import micro_batches
from utils.errors import InputError, SystemFailure, TrainingError
from utils.runs.checkpoint import INTERRUPTED, epoch_path, prune, save_checkpoint
from utils.runs.record import Run
from utils.runs.signals import Interrupted
from utils.utils import Tunable

from . import distributed
from .evaluation import evaluate
from .objective import Objective
from .state import Progress, Training
from .statistics import GradientMonitor, model_monitors

log = logging.getLogger(__name__)
COUNTS = ("images", "known", "right", "grad_norm", "steps", "skipped_steps")  # sums beside the loss and its parts
MAX_SKIPPED = 20  # steps in a row that fp16's scaler may leave out: from 65,536 its scale is then at 1/16


def train_one_epoch(training: Training, objective: Objective, loader: DataLoader, cfg: CfgNode) -> dict[str, object]:
    """One pass over the training images, or the rest of an interrupted one; returns the means over the images of the
    loss and its parts, over the steps of the gradient's norm and, where labels exist, the pseudo-labels' accuracy;
    and `skipped_steps`, how many steps fp16's scaler left out, if any.

    A signal ends it after a step of the optimiser, with Interrupted; `training.progress` then tells how far it came.
    Raises TrainingError for a loss or a gradient that is not finite.
    """
    progress, sampler, sums = training.progress, loader.sampler, Counter(training.progress.sums)
    begin, accumulate = time.perf_counter() - progress.seconds, cfg.OPTIM.ACCUMULATE
    sampler.epoch, sampler.start = training.epoch, progress.step
    batches = distributed.agree(lambda: iter(loader))
    images, gradients = 0, GradientMonitor(training.model, progress.gradients)
    bar = tqdm(total=sampler.batches, initial=progress.step, leave=False, **distributed.bar_settings(),
               desc=f"epoch {training.epoch + 1}/{cfg.OPTIM.MAX_EPOCH}")
    with training.interrupts.deferred(), bar:
        for step in range(progress.step, sampler.batches):
            in_step = min(accumulate, sampler.batches - (step - step % accumulate))
            told = learn_batch(training, objective, batches, in_step, cfg.DATALOADER.TRAIN_X.MICRO_BATCH)
            batch = distributed.add_up([own["sums"] for own in told])
            check_loss(batch, training, step)
            sums, images = distributed.add_up([sums, batch]), images + batch["images"]
            progress.unreadable += [message for own in told for message in own["unreadable"]]
            if (step + 1) % accumulate == 0 or step + 1 == sampler.batches:
                if images:
                    norm = finish_gradients(training, gradients, cfg.OPTIM.MAX_GRAD_NORM, batch, step)
                    sums.update({"grad_norm": norm, "steps": 1} if math.isfinite(norm) else {"skipped_steps": 1})
                    update(training)
                images = 0
                progress.advance(step + 1, sums, time.perf_counter() - begin)
                training.interrupts.act(max(own["signal"] for own in told))
            bar.update()
            if step % cfg.TRAIN.PRINT_FREQ == 0 and batch["images"]:
                bar.set_postfix(loss=f"{batch['loss'] / batch['images']:.4f}")
    training.note_unreadable(progress.unreadable)
    return summarise_epoch(training) | gradients.result()


def learn_batch(training: Training, objective: Objective, batches: Iterator[dict], in_step: int,
                micro_batch: int) -> list[dict[str, object]]:
    """Add this process's part of the next batch's gradient, for a step of `in_step` batches; returns what each
    process tells of its share. The shares' sizes are told first: every image weighs the same in the batch's mean."""
    share, counts = distributed.exchange(lambda: load_share(batches))
    images = sum(counts) * in_step
    _, told = distributed.exchange(lambda: (None, learn_share(training, objective, share, images, micro_batch)))
    return told


def load_share(batches: Iterator[dict]) -> tuple[dict[str, object], int]:
    """(this process's share of the next batch, how many images it has). A share may be empty."""
    share = next(batches, {})
    return share, len(share.get("label", ()))


def learn_share(training: Training, objective: Objective, share: dict[str, object], images: int,
                micro_batch: int) -> dict[str, object]:
    """Add the gradient of the loss of a share's images divided by `images`; returns what all processes are told of it:
    the sums over its images."""
    told = {"signal": training.interrupts.signal, "unreadable": share.pop("unreadable", []), "sums": {"images": 0}}
    if "label" not in share:
        return told
    count, labelled = len(share["label"]), share["label"] != UNKNOWN
    labels, parts = backward(training, objective, share, micro_batch, count / images)
    losses = {"loss": sum(parts.values()), **parts}
    told["sums"] = {"images": count, "known": labelled.sum().item(),
                    "right": (labels.cpu() == share["label"])[labelled].sum().item(),
                    **{name: loss.item() * count for name, loss in losses.items()}}
    return told


def summarise_epoch(training: Training) -> dict[str, object]:
    """An epoch's row of the record, from the sums over its images. Raises InputError where none could be read."""
    sums = Counter(training.progress.sums)
    if not sums["images"]:
        raise InputError(f"none of the training images could be read: {training.progress.unreadable[0]}")
    row = {name: total / sums["images"] for name, total in sums.items()
           if name not in COUNTS}
    if sums["steps"]:
        row["grad_norm"] = sums["grad_norm"] / sums["steps"]
    if sums["skipped_steps"]:
        row["skipped_steps"] = sums["skipped_steps"]
    if training.teacher and sums["known"]:
        row["pseudo_label_accuracy"] = sums["right"] / sums["known"]
    if training.progress.unreadable:
        row["unreadable"] = list(dict.fromkeys(training.progress.unreadable))
    return row


def backward(training: Training, objective: Objective, batch: dict[str, Tensor], micro_batch: int = 0,
             weight: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradient of a batch's mean loss times `weight`; returns the labels learnt [batch] and the parts of the
    loss, detached. `micro_batch` images are worked on at a time (`speed.micro_batches`)."""
    labels, parts = [], Counter()
    for micro in micro_batches(batch, micro_batch):
        labels.append(choose_labels(training, micro))
        part_of_batch = len(labels[-1]) / len(batch["label"])
        losses = step_loss(training.model, objective, labels[-1], micro)
        training.scaler.scale(sum(losses.values()) * (part_of_batch * weight)).backward()
        for name, loss in losses.items():
            parts[name] += part_of_batch * loss.detach()
    return torch.cat(labels), dict(parts)


def choose_labels(training: Training, batch: dict[str, Tensor]) -> Tensor:
    """Labels [batch] that the student learns: the teacher's, or the true ones."""
    if training.teacher:
        return training.teacher.labels(batch)
    if (batch["label"] == UNKNOWN).any():
        raise InputError("TRAIN.SUPERVISION is labels, but some training images have none; use pseudo")
    return batch["label"].to(training.model.adapter.weight.device)


def step_loss(model: Tunable, objective: Objective, labels: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of the loss on the student's views of a batch, each the mean over the views."""
    views = [batch[name] for name in ("strong", "strong2") if name in batch] or [batch["weak"]]
    device = model.adapter.weight.device
    per_view = [objective(model(view.to(device)), labels, batch) for view in views]
    return {name: sum(parts[name] for parts in per_view) / len(views) for name in per_view[0]}


def update(training: Training) -> None:
    """One step of the optimiser; then the teacher follows."""
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    if training.teacher:
        training.teacher.step()


def finish_gradients(training: Training, monitor: GradientMonitor, limit: float, batch: Counter, step: int) -> float:
    """Add up the processes' gradients, let the monitor measure them and scale them down to the norm `limit` (0: not);
    returns the norm before.

    Raises TrainingError for a norm that is not finite. In fp16 the scaler then leaves the step out and lowers its
    scale, and only MAX_SKIPPED such steps in a row are an error.
    """
    parameters = training.parameters()
    distributed.sum_gradients(parameters)
    training.scaler.unscale_(training.optimizer)
    monitor.update()
    norm = nn.utils.clip_grad_norm_(parameters, limit or math.inf).item()
    training.skipped = 0 if math.isfinite(norm) else training.skipped + 1
    if math.isfinite(norm) or training.scaler.is_enabled() and training.skipped < MAX_SKIPPED:
        return norm
    kinds = {group["name"]: None for group in training.optimizer.param_groups for parameter in group["params"]
             if parameter.grad is not None and not torch.isfinite(parameter.grad).all()}
    parts = ", ".join(f"{name} {batch[name] / batch['images']:.4g}" for name in batch if name not in COUNTS)
    what = f"fp16 left out {MAX_SKIPPED} steps in a row: " if training.scaler.is_enabled() else ""
    raise TrainingError(_not_finite(f"{what}the gradient of {', '.join(kinds)}", f"loss: {parts}", training, step))


def check_loss(batch: Counter, training: Training, step: int) -> None:
    """TrainingError that names the parts of a batch's loss which are not finite."""
    bad = [name for name, total in batch.items() if name not in (*COUNTS, "loss") and not math.isfinite(total)]
    if not math.isfinite(batch["loss"]):
        raise TrainingError(_not_finite("the loss", ", ".join(bad) or "the sum of its parts", training, step))


def _not_finite(what: str, parts: str, training: Training, step: int) -> str:
    rates = ", ".join(f"{group['name']} {group['lr']:.3g}" for group in training.optimizer.param_groups)
    return (f"{what} is not finite in epoch {training.epoch + 1}, step {step + 1}: {parts} (learning rates: {rates}); "
            "lower --lr, set --max-grad-norm, or set MODEL.PRECISION fp32; the last checkpoint is safe")


def fit(training: Training, objective: Objective, train_loader: DataLoader, eval_loaders: dict[str, DataLoader],
        cfg: CfgNode, run: Run) -> dict[str, dict]:
    """Train to OPTIM.MAX_EPOCH, writing a row and a checkpoint per epoch. Returns the rows `untrained`
    (before the first step), `last` and `best`: the epoch with the highest validation accuracy, the first of equals;
    without labelled validation images, the last. The test split is scored and never selects.

    A signal saves the epoch under way, or what is left of it to score, and raises Interrupted; so does a failure of
    the machine between two steps, which raises SystemFailure.
    """
    try:
        if not training.rows:
            training.model.start_epoch(0)
            training.rows["untrained"] = {"epoch": 0, **evaluate(training.model, eval_loaders, training.references)}
            run.append(training.rows["untrained"])
        while training.epoch < cfg.OPTIM.MAX_EPOCH:
            row = run_epoch(training, objective, train_loader, eval_loaders, cfg)
            with training.interrupts.deferred():
                end_epoch(training, row, cfg, run)
    except (Interrupted, SystemFailure):
        if training.progress.step and distributed.is_main():
            with training.interrupts.deferred():
                save_checkpoint(run.checkpoints / INTERRUPTED, training.state_dict())
                log.info("saved epoch %d after %d batches in %s", training.epoch + 1, training.progress.step,
                         run.checkpoints / INTERRUPTED)
        raise
    return training.rows


def run_epoch(training: Training, objective: Objective, train_loader: DataLoader,
              eval_loaders: dict[str, DataLoader], cfg: CfgNode) -> dict[str, object]:
    """Train for an epoch and score every split; returns the epoch's row of the record."""
    training.model.start_epoch(training.epoch)
    rates = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
    row = {"epoch": training.epoch + 1, "lr": rates,
           **train_one_epoch(training, objective, train_loader, cfg), **model_monitors(training.model)}
    row["train_seconds"] = training.progress.seconds
    return row | evaluate(training.model, eval_loaders, training.references)


def end_epoch(training: Training, row: dict[str, object], cfg: CfgNode, run: Run) -> None:
    """Move on to the next epoch and save where the run stands: in the record, then in the checkpoints."""
    training.scheduler.step()
    training.epoch, training.progress = training.epoch + 1, Progress()
    improved = "best" not in training.rows or _validation(row) > _validation(training.rows["best"])
    training.rows |= {"last": row, **({"best": row} if improved else {})}
    for split in row.values():
        training.note_unreadable(split.get("unreadable", []) if isinstance(split, dict) else [])
    log.info("epoch %d/%d: %s", training.epoch, cfg.OPTIM.MAX_EPOCH, summarise(row))
    if not distributed.is_main():
        return
    run.append(row)
    state = training.state_dict()
    if improved:  # before the epoch's own: cut off in between, the run repeats the epoch
        save_checkpoint(run.checkpoints / "best.pt", state)
    save_checkpoint(epoch_path(run.checkpoints, training.epoch), state)
    prune(run.checkpoints, cfg.TRAIN.KEEP)


def _validation(row: dict) -> float:
    """Validation accuracy; where nothing is labelled, every epoch is better than the one before."""
    return row.get("val", {}).get("top1", row["epoch"])


def summarise(row: dict) -> str:
    """A row in one line: losses as they are, accuracies (without labels, agreements and confidences) in per cent."""
    parts = [f"{name} {row[name]:.4f}" for name in ("loss", "consistency") if name in row]
    if "pseudo_label_accuracy" in row:
        parts.append(f"pseudo-labels {100 * row['pseudo_label_accuracy']:.1f} %")
    parts += [f"{row['skipped_steps']} steps left out"] if "skipped_steps" in row else []
    parts += [f"{split} {100 * row[split]['top1']:.1f} %" for split in ("val", "test") if "top1" in row.get(split, {})]
    parts += [f"{split} {name} {100 * row[split][name]:.1f} %" for split in ("val", "test")
              for name in ("agreement", "confidence") if name in row.get(split, {})]
    return ", ".join([*parts, f"{row['train_seconds']:.1f} s"])
