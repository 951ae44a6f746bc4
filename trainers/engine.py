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

from .monitors import GradientMonitor, StageMonitor, model_monitors
from .objective import Objective
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
    """What differs from the CLIP file, on the CPU: the parameters that the model declares trainable, and buffers."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _tuned_tensors(model).items()}


def _tuned_tensors(model: Tunable) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: parameters[name] for name in model.parameter_kinds()} | dict(model.named_buffers())


def load_tuned(model: Tunable, state: dict[str, Tensor]) -> None:
    """Put `tuned_state` back. Raises InputError for names or shapes that do not fit."""
    tuned = _tuned_tensors(model)
    wrong = set(state) ^ set(tuned) or {name for name in state if state[name].shape != tuned[name].shape}
    if wrong:
        raise InputError(f"the checkpoint does not fit the model: {', '.join(sorted(wrong)[:5])}")
    with torch.no_grad():
        for name, tensor in state.items():
            tuned[name].copy_(tensor)


@torch.no_grad()
def predict(model: Tunable, loader: DataLoader, what: str = "evaluation",
            monitor: StageMonitor | None = None) -> dict[str, Tensor]:
    """`probabilities` [n, classes], `labels` [n] and, where annotated, `distributions`, on the CPU, of weak views."""
    device = model.adapter.weight.device
    columns = defaultdict(list)
    for batch in tqdm(loader, desc=what, leave=False):
        prediction = model(batch["weak"].to(device, non_blocking=True))
        columns["probabilities"].append(prediction.logits.softmax(-1).cpu())
        columns["labels"].append(batch["label"])
        if "distribution" in batch:
            columns["distributions"].append(batch["distribution"])
        if monitor:
            monitor.update(prediction, model.adapter, batch["label"])
    return {name: torch.cat(column) for name, column in columns.items()}


def evaluate(model: Tunable, loaders: dict[str, DataLoader]) -> dict[str, dict[str, object]]:
    """The metrics of each split and what the stages say by themselves; the same forward as in training."""
    metrics = {}
    for split, loader in loaders.items():
        monitor = StageMonitor()
        metrics[split] = score(**predict(model, loader, split, monitor)) | monitor.result()
    return metrics


def train_one_epoch(training: Training, objective: Objective, loader: DataLoader, cfg: CfgNode) -> dict[str, object]:
    """One pass over the training images; returns the means of the loss and its parts and, where labels exist, the
    pseudo-labels' accuracy. Raises TrainingError for a loss that is not finite."""
    model, totals, steps = training.model, defaultdict(float), len(loader)
    gradients = GradientMonitor(model)
    right = known = 0
    loader.sampler.epoch = training.epoch
    bar = tqdm(loader, desc=f"epoch {training.epoch + 1}/{cfg.OPTIM.MAX_EPOCH}", leave=False)
    for step, batch in enumerate(bar):
        labels = choose_labels(training, batch)
        parts = step_loss(model, objective, labels, batch)
        loss = sum(parts.values())
        if not torch.isfinite(loss):
            raise TrainingError(_not_finite(parts, training, step))
        group_start = step - step % cfg.OPTIM.ACCUMULATE
        training.scaler.scale(loss / min(cfg.OPTIM.ACCUMULATE, steps - group_start)).backward()
        if (step + 1) % cfg.OPTIM.ACCUMULATE == 0 or step + 1 == steps:
            gradients.update(training.scaler.get_scale())
            update(training)
        for name, part in {"loss": loss, **parts}.items():
            totals[name] += part.item() * len(labels)
        labelled = batch["label"] != UNKNOWN
        known += labelled.sum().item()
        right += (labels.cpu() == batch["label"])[labelled].sum().item()
        if step % cfg.TRAIN.PRINT_FREQ == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
    row = {name: total / len(loader.dataset) for name, total in totals.items()} | gradients.result()
    if training.teacher and known:
        row["pseudo_label_accuracy"] = right / known
    return row


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
           **train_one_epoch(training, objective, train_loader, cfg), **model_monitors(training.model)}
    row["train_seconds"] = time.perf_counter() - start
    training.scheduler.step()
    training.epoch += 1
    return row | evaluate(training.model, eval_loaders)


def _validation(row: dict) -> float:
    """Validation accuracy; where nothing is labelled, every epoch is better than the one before."""
    return row.get("val", {}).get("top1", row["epoch"])


def summarise(row: dict) -> str:
    """A row in one line: losses as they are, accuracies in per cent."""
    parts = [f"{name} {row[name]:.4f}" for name in ("loss", "consistency") if name in row]
    if "pseudo_label_accuracy" in row:
        parts.append(f"pseudo-labels {100 * row['pseudo_label_accuracy']:.1f} %")
    parts += [f"{split} {100 * row[split]['top1']:.1f} %" for split in ("val", "test") if "top1" in row.get(split, {})]
    return ", ".join([*parts, f"{row['train_seconds']:.1f} s"])
