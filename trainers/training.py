"""The training loop: one pass over the training images, and all epochs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from utils.data.loader import ViewLoader, micro_batches, send
from utils.errors import InputError, SystemFailure, TrainingError
from utils.failures import plain_errors
from utils.runs.checkpoint import INTERRUPTED, epoch_path, prune, save_checkpoint
from utils.runs.record import Run
from utils.runs.signals import Interrupted
from utils.utils import Tunable, spoken

from . import distributed
from .evaluation import evaluate
from .objective import PARTS, Objective
from .state import Progress, Training
from .statistics import StepNumbers, TrainingStatistics, batch_numbers, model_statistics, summarise_training
from .teacher import Teacher

log = logging.getLogger(__name__)
MAX_SKIPPED = 20  # steps in a row that fp16's scaler may leave out: from 65,536 its scale is then at 1/16


def train_one_epoch(training: Training, objective: Objective, loader: ViewLoader, cfg: CfgNode) -> dict[str, object]:
    """One pass over the training images, or the rest of an interrupted one; returns its row of the record.

    A step of the optimiser sees a batch of the loader, BATCH_SIZE × ACCUMULATE images of all processes together,
    MICRO_BATCH at a time. A signal ends the pass after a step, with Interrupted; then, as at its end and where the
    machine fails a single process (SystemFailure), `training.progress` tells how far it came. Raises TrainingError for
    a loss or a gradient that is not finite, PRINT_FREQ steps after it at the latest.
    """
    parameters, progress, sampler = training.parameters(), training.progress, loader.batch_sampler
    sampler.epoch, sampler.start = training.epoch, progress.step
    statistics, full = TrainingStatistics(training.model, progress.sums), sampler.batch_images(0)
    bar = tqdm(total=sampler.num_batches, initial=progress.step, leave=False, **distributed.bar_settings(),
               desc=f"epoch {training.epoch + 1}/{cfg.OPTIM.MAX_EPOCH}")
    with training.interrupts.deferred(), bar, progress_kept(training, statistics, loader) as done:
        for step, batch in enumerate(loader, start=progress.step):
            planned = sampler.batch_images(step)  # images of the batch, in all processes
            own = len(batch.get("label", ()))  # of these, what this process could read
            if objective.fairness:
                batch["mean_prediction"] = mean_prediction(training, cfg, batch, own).expand(own, -1)
            key = training.graph_key() if own == full else None  # what runs alike from batch to batch may be recorded
            losses = {}
            if own:
                work = functools.partial(compute_gradients, training, objective, cfg, planned)
                losses = training.graphs.run("gradients", work, on_device(training, batch), key)

            readable, signal = distributed.reduce_step(parameters, own, training.interrupts.signal)
            if readable:
                work = functools.partial(update, training, statistics, cfg, planned, readable)
                norms = training.graphs.run("update", work, {}, key)
                statistics.add_step(step, own, losses, norms)

            done.step = step + 1
            bar.update()
            if step % cfg.TRAIN.PRINT_FREQ == 0:
                steps = statistics.fetch()
                check_finite(steps, training)
                bar.set_postfix(steps[-1].losses if steps else {})
            training.interrupts.act(signal)
    return training_row(training)


def on_device(training: Training, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch's columns on the training device. Raises InputError for an image that the teacher has no label for."""
    if training.teacher:
        training.teacher.check(batch)
    return {name: send(column, training.device) for name, column in batch.items()}


def compute_gradients(training: Training, objective: Objective, cfg: CfgNode, planned: int,
                      batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add to the parameters' gradients those of the loss on `batch`, this process's share of the `planned` images of
    a step; returns `batch_numbers`. Nothing in it waits for the device."""
    batch = dict(batch)  # what a recording works on stays as it is
    batch["target"] = choose_labels(training.teacher, batch)
    own, losses = len(batch["target"]), Counter()
    for micro in micro_batches(batch, micro_batch_size(cfg, training.device)):
        parts, images = step_loss(training.model, objective, micro), len(micro["target"])
        training.scaler.scale(sum(parts.values()) * (images / planned)).backward()
        losses.update({name: loss.detach() * (images / own) for name, loss in parts.items()})
    return batch_numbers(losses, batch, pseudo_labelled=training.teacher is not None)


def update(training: Training, statistics: TrainingStatistics, cfg: CfgNode, planned: int, readable: int,
           _: dict[str, Tensor]) -> dict[str, Tensor]:
    """A step of the optimiser with the gradients of `readable` of the `planned` images; clears the gradients, and
    returns the norms that they had before clipping, of all as `grad_norm` and by kind and stage. Nothing in it waits
    for the device."""
    parameters, optimizer, scaler = training.parameters(), training.optimizer, training.scaler
    scaler.unscale_(optimizer)
    if readable < planned:  # the mean is over those that could be read
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], planned / readable)
    norms = statistics.gradient_norms()
    if cfg.OPTIM.MAX_GRAD_NORM:
        nn.utils.clip_grad_norm_(parameters, cfg.OPTIM.MAX_GRAD_NORM)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if training.teacher:
        training.teacher.step(planned)
    return norms


@contextlib.contextmanager
def progress_kept(training: Training, statistics: TrainingStatistics, loader: ViewLoader) -> Iterator[Progress]:
    """Keep `training.progress` up to date around a pass, which sets the `step` of what it is given.

    While the pass runs, `training.progress` is empty. At its end, at a signal and where the machine fails a single
    process it holds all steps done; where the machine fails one of several processes it stays empty, for the others'
    sums cannot be had.
    """
    before, training.progress = training.progress, Progress()
    done, begin = Progress(before.step), time.perf_counter() - before.seconds

    def keep() -> None:
        check_finite(statistics.fetch(), training)
        unreadable = itertools.chain(before.unreadable, *distributed.gather(loader.unreadable))
        training.progress = Progress(done.step, statistics.totals(), time.perf_counter() - begin,
                                     list(dict.fromkeys(unreadable)))

    try:
        with plain_errors():
            yield done
    except (Interrupted, SystemFailure) as stop:
        if isinstance(stop, Interrupted) or distributed.world_size() == 1:
            keep()
        raise
    keep()


def micro_batch_size(cfg: CfgNode, device: torch.device) -> int:
    """How many images are worked on at a time; 0 leaves it to `micro_batches`."""
    if cfg.DATALOADER.TRAIN_X.MICRO_BATCH or device.type == "cpu":
        return cfg.DATALOADER.TRAIN_X.MICRO_BATCH
    return math.ceil(cfg.DATALOADER.TRAIN_X.BATCH_SIZE / distributed.world_size())


def choose_labels(teacher: Teacher | None, batch: dict[str, Tensor]) -> Tensor:
    """Labels [batch] that the student learns: the teacher's, or without one the true ones."""
    return teacher.labels(batch) if teacher else batch["label"]


def step_loss(model: Tunable, objective: Objective, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parts of the loss on the student's views of a batch, each the mean over its images and views; `target`
    [batch] is what they learn."""
    views = [batch[name] for name in ("strong", "strong2") if name in batch] or [batch["weak"]]
    per_view = [objective(model(view), batch["target"], batch) for view in views]
    if len(views) == 1:
        return per_view[0]
    return {name: sum(parts[name] for parts in per_view) / len(views) for name in per_view[0]}


@torch.no_grad()
def mean_prediction(training: Training, cfg: CfgNode, batch: dict[str, Tensor], own: int) -> Tensor:
    """The mean [classes] of the student's probabilities over a batch, over all processes, of which this one has `own`
    images: what a part of the loss that is about the mean needs of the whole batch before its parts go backwards."""
    total = torch.zeros(1, 1 + training.model.adapter.out_features, device=training.device)
    for micro in micro_batches(batch, micro_batch_size(cfg, training.device)) if own else ():
        probabilities = training.model(micro["strong"]).logits.softmax(-1, dtype=torch.float32)
        total += torch.cat([probabilities.new_full((1,), len(probabilities)), probabilities.sum(0)])
    total = distributed.gather_rows(total, distributed.world_size()).sum(0)
    return total[1:] / total[0].clamp(min=1)


def check_finite(steps: list[StepNumbers], training: Training) -> None:
    """Raise TrainingError for the first loss or gradient that is not finite. In fp16 the scaler leaves a step with such
    a gradient out, and only MAX_SKIPPED of them in a row are an error."""
    fp16 = training.scaler.is_enabled()
    for step, losses, norms in steps:
        training.skipped = 0 if math.isfinite(norms["grad_norm"]) else training.skipped + 1
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if bad:
            what, parts = "the loss", ", ".join(name for name in bad if name != "loss")
        elif training.skipped >= (MAX_SKIPPED if fp16 else 1):
            kinds = dict.fromkeys(key.split()[0] for key, norm in norms.items() if not math.isfinite(norm))
            what = f"the gradient of {', '.join(spoken(kind) for kind in kinds if kind != 'grad_norm')}"
            what = f"fp16 left out {MAX_SKIPPED} steps in a row: {what}" if fp16 else what
            parts = "loss: " + ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items() if name != "loss")
        else:
            continue
        rates = ", ".join(f"{spoken(group['name'])} {group['lr']:.3g}" for group in training.optimizer.param_groups)
        raise TrainingError(f"{what} is not finite in epoch {training.epoch + 1}, step {step + 1}: {parts} (learning "
                            f"rates: {rates}); lower --lr, set --max-grad-norm, or set MODEL.PRECISION fp32; the last "
                            "checkpoint is safe")


def training_row(training: Training) -> dict[str, object]:
    """The epoch's row of the record, from `training.progress`. Raises InputError where no image could be read."""
    progress = training.progress
    training.note_unreadable(progress.unreadable)
    if not progress.sums["images"].get("images"):
        raise InputError(f"none of the training images could be read: {progress.unreadable[0]}")
    row = summarise_training(progress.sums, training.model)
    if progress.unreadable:
        row["unreadable"] = progress.unreadable
    return row


def fit(training: Training, objective: Objective, train_loader: ViewLoader, eval_loaders: dict[str, ViewLoader],
        cfg: CfgNode, run: Run) -> dict[str, dict]:
    """Train to OPTIM.MAX_EPOCH, writing a row and a checkpoint per epoch. Returns the rows `untrained`
    (before the first step), `last` and `best`: the epoch with the highest validation accuracy, the first of equals;
    without labelled validation images, the last. The test split is scored and never selects.

    A signal saves the epoch under way and raises Interrupted. A failure of the machine saves it too and raises
    SystemFailure, but not where several processes are within a pass: their sums cannot be had any more.
    """
    try:
        with plain_errors():
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
                log.info("saved epoch %d after %d steps in %s", training.epoch + 1, training.progress.step,
                         run.checkpoints / INTERRUPTED)
        raise
    return training.rows


def run_epoch(training: Training, objective: Objective, train_loader: ViewLoader,
              eval_loaders: dict[str, ViewLoader], cfg: CfgNode) -> dict[str, object]:
    """Train for an epoch and score every split; returns the epoch's row of metrics.jsonl.

    It is made of learning rates, `summarise_training` (losses, gradients, accuracy of the pseudo-labels),
    `model_statistics` (prompts, stages), `Teacher.label_statistics` and, for each split, `evaluate`.
    """
    training.model.start_epoch(training.epoch)
    rates = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
    row = {"epoch": training.epoch + 1, "lr": rates,
           **train_one_epoch(training, objective, train_loader, cfg), **model_statistics(training.model)}
    if training.teacher:
        row |= training.teacher.label_statistics()
    row["train_seconds"] = training.progress.seconds
    return row | evaluate(training.model, eval_loaders, training.references)


def end_epoch(training: Training, row: dict[str, object], cfg: CfgNode, run: Run) -> None:
    """Move on to the next epoch and save where the run stands: in the record, then in the checkpoints."""
    training.scheduler.step()
    if training.teacher:
        training.teacher.end_epoch()
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
    """A row in one line: the loss, with its parts where it has several, accuracies (without labels, agreements and
    confidences) in per cent, and the divergence from annotated distributions."""
    losses = [f"{name.replace('_', ' ')} {row[name]:.4f}" for name in PARTS if name in row]
    parts = [f"loss {row['loss']:.4f}" + (f" ({', '.join(losses)})" if len(losses) > 1 else "")]
    if "pseudo_label_accuracy" in row:
        plain = row.get("pseudo_label_accuracy_uncalibrated")
        parts.append(f"pseudo-labels {100 * row['pseudo_label_accuracy']:.1f} %"
                     + ("" if plain is None else f" (uncalibrated {100 * plain:.1f} %)"))
    parts += [f"{row['skipped_steps']} steps left out"] if "skipped_steps" in row else []
    parts += [f"{split} {100 * row[split]['top1']:.1f} %" + (f" (KL {row[split]['kl']:.3f})" if "kl" in row[split] else
                                                             "")
              for split in ("val", "test") if "top1" in row.get(split, {})]
    parts += [f"{split} {name} {100 * row[split][name]:.1f} %" for split in ("val", "test")
              for name in ("agreement", "confidence") if name in row.get(split, {})]
    return ", ".join([*parts, f"{row['train_seconds']:.1f} s"])
