"""The one training loop and the one evaluation, for all trainers."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from utils.checkpoint import epoch_path, load_checkpoint, prune, save_checkpoint
from utils.data import UNKNOWN
from utils.errors import InputError, TrainingError
from utils.metrics import score
from utils.record import Run
from utils.utils import Tunable

from .lafter_multilayer import MultiLayerLaFTer
from .objective import Objective
from .speed import micro_batches
from .teacher import Teacher

log = logging.getLogger(__name__)


@dataclass
class Training:
    """All that changes while training, and `identity`: what a checkpoint must agree in to be continued."""

    model: Tunable
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    identity: dict[str, object]
    epoch: int = 0  # epochs done
    rows: dict[str, dict] = field(default_factory=dict)  # of the record: `untrained`, `last`, `best` on validation

    def state_dict(self) -> dict[str, object]:
        return {**self.identity, "epoch": self.epoch, "rows": self.rows, "model": tuned_state(self.model),
                "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(), "teacher": self.teacher.state_dict() if self.teacher else None}

    def load(self, path) -> None:
        """Continue from a checkpoint. Raises InputError where it belongs to another model, data set or trainer."""
        state = load_checkpoint(path, self.identity)
        load_tuned(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.teacher:
            self.teacher.load_state_dict(state["teacher"])
        self.epoch, self.rows = state["epoch"], state["rows"]
        self.model.start_epoch(max(self.epoch - 1, 0))


def tuned_state(model: Tunable) -> dict[str, Tensor]:
    """What differs from the CLIP file: the parameters that the model declares trainable, on the CPU."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().cpu().clone() for name in model.parameter_kinds()}


def load_tuned(model: Tunable, state: dict[str, Tensor]) -> None:
    """Put `tuned_state` back. Raises InputError for names or shapes that do not fit."""
    parameters = dict(model.named_parameters())
    wrong = set(state) ^ set(model.parameter_kinds()) or {n for n in state if state[n].shape != parameters[n].shape}
    if wrong:
        raise InputError(f"the checkpoint does not fit the model: {', '.join(sorted(wrong)[:5])}")
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


@torch.no_grad()
def predict(model: Tunable, loader: DataLoader, what: str = "evaluation") -> dict[str, Tensor]:
    """`probabilities` [n, classes], `labels` [n] and, where annotated, `distributions`, on the CPU, of weak views."""
    device = model.adapter.weight.device
    columns = defaultdict(list)
    for batch in tqdm(loader, desc=what, leave=False):
        for micro in micro_batches(batch):
            prediction = model(micro["weak"].to(device, non_blocking=True))
            columns["probabilities"].append(prediction.logits.softmax(-1).cpu())
        columns["labels"].append(batch["label"])
        if "distribution" in batch:
            columns["distributions"].append(batch["distribution"])
    return {name: torch.cat(column) for name, column in columns.items()}


def evaluate(model: Tunable, loaders: dict[str, DataLoader]) -> dict[str, dict[str, object]]:
    """The metrics of each split; the same forward as in training."""
    return {split: score(**predict(model, loader, split)) for split, loader in loaders.items()}


def train_one_epoch(training: Training, objective: Objective, loader: DataLoader, cfg: CfgNode) -> dict[str, object]:
    """One pass over the training images; returns the means of the loss and its parts and, where labels exist, the
    pseudo-labels' accuracy. Raises TrainingError for a loss that is not finite."""
    totals, steps = defaultdict(float), len(loader)
    right = known = 0
    loader.sampler.epoch = training.epoch
    bar = tqdm(loader, desc=f"epoch {training.epoch + 1}/{cfg.OPTIM.MAX_EPOCH}", leave=False)
    for step, batch in enumerate(bar):
        group_start = step - step % cfg.OPTIM.ACCUMULATE
        labels, parts = backward(training, objective, batch, cfg.DATALOADER.TRAIN_X.MICRO_BATCH,
                                 min(cfg.OPTIM.ACCUMULATE, steps - group_start))
        loss = sum(parts.values())
        if not torch.isfinite(loss):
            raise TrainingError(_not_finite(parts, training, step))
        if (step + 1) % cfg.OPTIM.ACCUMULATE == 0 or step + 1 == steps:
            update(training)
        for name, part in {"loss": loss, **parts}.items():
            totals[name] += part.item() * len(labels)
        labelled = batch["label"] != UNKNOWN
        known += labelled.sum().item()
        right += (labels.cpu() == batch["label"])[labelled].sum().item()
        if step % cfg.TRAIN.PRINT_FREQ == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    row = {name: total / len(loader.dataset) for name, total in totals.items()}
    if training.teacher and known:
        row["pseudo_label_accuracy"] = right / known
    return row


def backward(training: Training, objective: Objective, batch: dict[str, Tensor], micro_batch: int = 0,
             accumulate: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradient of a batch's mean loss, divided by `accumulate`; returns the labels learnt [batch] and the
    parts of the loss, detached. `micro_batch` images are worked on at a time (`speed.micro_batches`)."""
    labels, parts = [], defaultdict(float)
    for micro in micro_batches(batch, micro_batch):
        labels.append(choose_labels(training, micro))
        share = len(labels[-1]) / len(batch["label"])
        losses = {name: share * part
                  for name, part in step_loss(training.model, objective, labels[-1], micro).items()}
        training.scaler.scale(sum(losses.values()) / accumulate).backward()
        for name, part in losses.items():
            parts[name] += part.detach()
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
    per_view = [objective(model(view.to(device, non_blocking=True)), labels, batch) for view in views]
    return {name: sum(parts[name] for parts in per_view) / len(views) for name in per_view[0]}


def update(training: Training) -> None:
    """One step of the optimiser; then the teacher follows."""
    training.scaler.step(training.optimizer)
    training.scaler.update()
    training.optimizer.zero_grad(set_to_none=True)
    if training.teacher:
        training.teacher.step()


def _not_finite(parts: dict[str, Tensor], training: Training, step: int) -> str:
    bad = ", ".join(name for name, part in parts.items() if not torch.isfinite(part))
    rates = ", ".join(f"{group['name']} {group['lr']:.3g}" for group in training.optimizer.param_groups)
    return (f"the loss is not finite in epoch {training.epoch + 1}, step {step + 1}: {bad} (learning rates: {rates}); "
            "lower --lr, or set MODEL.PRECISION fp32; the last epoch's checkpoint is safe")


def fit(training: Training, objective: Objective, train_loader: DataLoader, eval_loaders: dict[str, DataLoader],
        cfg: CfgNode, run: Run) -> dict[str, dict]:
    """Train to OPTIM.MAX_EPOCH, writing a row and a checkpoint per epoch. Returns the rows `untrained`
    (before the first step), `last` and `best`: the epoch with the highest validation accuracy, the first of equals;
    without labelled validation images, the last. The test split is scored and never selects."""
    if not training.epoch:
        training.model.start_epoch(0)
        training.rows["untrained"] = {"epoch": 0, **evaluate(training.model, eval_loaders)}
        run.append(training.rows["untrained"])
    while training.epoch < cfg.OPTIM.MAX_EPOCH:
        row = run_epoch(training, objective, train_loader, eval_loaders, cfg)
        improved = "best" not in training.rows or _validation(row) > _validation(training.rows["best"])
        training.rows |= {"last": row, **({"best": row} if improved else {})}
        run.append(row)
        state = training.state_dict()
        if improved:  # before the epoch's own: cut off in between, the run repeats the epoch
            save_checkpoint(run.checkpoints / "best.pt", state)
        save_checkpoint(epoch_path(run.checkpoints, training.epoch), state)
        prune(run.checkpoints, cfg.TRAIN.KEEP)
        log.info("epoch %d/%d: %s", training.epoch, cfg.OPTIM.MAX_EPOCH, summarise(row))
    return training.rows


def run_epoch(training: Training, objective: Objective, train_loader: DataLoader,
              eval_loaders: dict[str, DataLoader], cfg: CfgNode) -> dict[str, object]:
    """Train for an epoch and score every split; returns the epoch's row of the record."""
    start = time.perf_counter()
    training.model.start_epoch(training.epoch)
    rates = {group["name"]: group["lr"] for group in training.optimizer.param_groups}
    row = {"epoch": training.epoch + 1, "lr": rates,
           **train_one_epoch(training, objective, train_loader, cfg), **monitors(training.model)}
    row["train_seconds"] = time.perf_counter() - start
    training.scheduler.step()
    training.epoch += 1
    return row | evaluate(training.model, eval_loaders)


def _validation(row: dict) -> float:
    """Validation accuracy; where nothing is labelled, every epoch is better than the one before."""
    return row.get("val", {}).get("top1", row["epoch"])


def monitors(model: Tunable) -> dict[str, list[float]]:
    """What a run's record tells of the stages: their weights in the fusion, σ of NGA, which are active."""
    if not isinstance(model, MultiLayerLaFTer):
        return {}
    return {"stage_weights": model.fusion_weights().tolist(), "sigma": model.nga.sigma.tolist(),
            "active_stages": list(model.active_stages)}


def summarise(row: dict) -> str:
    """A row in one line: losses as they are, accuracies in per cent."""
    parts = [f"{name} {row[name]:.4f}" for name in ("loss", "consistency") if name in row]
    if "pseudo_label_accuracy" in row:
        parts.append(f"pseudo-labels {100 * row['pseudo_label_accuracy']:.1f} %")
    parts += [f"{split} {100 * row[split]['top1']:.1f} %" for split in ("val", "test") if "top1" in row.get(split, {})]
    return ", ".join([*parts, f"{row['train_seconds']:.1f} s"])
