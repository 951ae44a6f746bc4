"""All that changes while training, to be saved, continued and shared between processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from utils.data.images import summarise_unreadable
from utils.errors import InputError
from utils.runs.checkpoint import load_checkpoint, pack, unpack
from utils.runs.random_state import rng_state, set_rng_state
from utils.runs.signals import Interrupts
from utils.utils import Tunable

from . import distributed
from .cuda_graph import StepGraphs
from .teacher import Teacher

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """Within the epoch under way: the steps done, what was summed over them, and how long they took."""

    step: int = 0
    sums: dict[str, dict[str, float]] = field(default_factory=dict)  # see `TrainingStatistics`
    seconds: float = 0.0
    unreadable: list[str] = field(default_factory=list)  # what was said of images that were left out


@dataclass
class Training:
    """All that changes while training, and `identity`: what a checkpoint must agree in to be continued."""

    model: Tunable
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    identity: dict[str, object]
    config: str = ""  # resolved, as YAML: for whoever finds a checkpoint alone
    interrupts: Interrupts = field(default_factory=Interrupts)
    epoch: int = 0  # epochs done
    progress: Progress = field(default_factory=Progress)
    rows: dict[str, dict] = field(default_factory=dict)  # of the record: `untrained`, `last`, `best` on validation
    unreadable: list[str] = field(default_factory=list)  # of the whole run, each once
    skipped: int = 0  # steps in a row, up to the last fetched, that fp16's scaler left out; a new start counts anew
    seconds: float = 0.0  # that earlier starts of the run took from `begin` to the checkpoint
    begin: float = field(default_factory=time.perf_counter)
    graphs: StepGraphs = field(default_factory=StepGraphs)
    references: dict[str, Tensor] = field(default_factory=dict)  # per split, classes [n] as the text classifier says

    def state_dict(self) -> dict[str, object]:
        return {**self.identity, "config": self.config, "epoch": self.epoch, "progress": asdict(self.progress),
                "rows": self.rows, "unreadable": self.unreadable, "model": tuned_state(self.model),
                "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(), "teacher": self.teacher.state_dict() if self.teacher else None,
                "seconds": self.seconds + time.perf_counter() - self.begin, "rng": rng_state()}

    def load(self, path: Path) -> None:
        """Continue from a checkpoint. Raises InputError where it belongs to another model, data set or trainer."""
        self.load_state_dict(load_checkpoint(path, self.identity))

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Put `state_dict` back. Raises InputError where its parameters are not the model's."""
        load_tuned(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.teacher:
            self.teacher.load_state_dict(state["teacher"])
        self.epoch, self.progress, self.rows = state["epoch"], Progress(**state["progress"]), state["rows"]
        self.unreadable, self.seconds = state["unreadable"], state.get("seconds", 0.0)  # none in older checkpoints
        self.model.start_epoch(max(self.epoch - 1, 0))
        set_rng_state(state["rng"])

    def share(self) -> None:
        """Give all processes the first one's state. Raises InputError where one has another CLIP or data set.

        Nothing draws from the global generators while images train (each view has a seed of its own); they differ
        from process to process all the same, so that what may draw from them one day does not draw alike.
        """
        if distributed.world_size() == 1:
            return
        for rank, identity in enumerate(distributed.gather(self.identity)):
            different = [name for name, value in self.identity.items() if identity[name] != value]
            if different:
                raise InputError(f"process {rank} has another {different[0]} than process {distributed.rank()}: all "
                                 "machines must have the same data, weights and settings")
        state = distributed.broadcast(pack(self.state_dict()) if distributed.is_main() else None)
        if not distributed.is_main():
            self.load_state_dict(unpack(state))
            torch.manual_seed(torch.initial_seed() + distributed.rank())

    def note_unreadable(self, messages: Sequence[str]) -> None:
        """Keep what was said of images that cannot be read; say it once, in one line."""
        new = [message for message in dict.fromkeys(messages) if message not in self.unreadable]
        if new:
            log.warning("left out: %s", summarise_unreadable(new))
            self.unreadable += new

    @property
    def device(self) -> torch.device:
        return self.model.adapter.weight.device

    def graph_key(self) -> tuple:
        """What a recording of a step holds fast that may change from epoch to epoch: rates, and what trains."""
        return (tuple(group["lr"] for group in self.optimizer.param_groups),
                tuple(parameter.requires_grad for parameter in self.parameters()))

    def parameters(self) -> list[torch.nn.Parameter]:
        """What the optimiser steps."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def tuned_state(model: Tunable) -> dict[str, Tensor]:
    """What differs from the CLIP file, on the CPU: the parameters that the model declares trainable, and buffers."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _tuned_tensors(model).items()}


def _tuned_tensors(model: Tunable) -> dict[str, Tensor]:
    parameters, kept = dict(model.named_parameters()), model.state_dict().keys()  # a mask is made anew, and not kept
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
    return {name: parameters[name] for name in model.parameter_kinds()} | buffers


def load_tuned(model: Tunable, state: dict[str, Tensor]) -> None:
    """Put `tuned_state` back. Raises InputError for names or shapes that do not fit."""
    tuned = _tuned_tensors(model)
    wrong = set(state) ^ set(tuned) or {name for name in state if state[name].shape != tuned[name].shape}
    if wrong:
        raise InputError(f"the checkpoint does not fit the model: {', '.join(sorted(wrong)[:5])}")
    with torch.no_grad():
        for name, tensor in state.items():
            tuned[name].copy_(tensor)
