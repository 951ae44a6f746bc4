"""Parts of a step as CUDA graphs: what is repeated is the step, on memory of its own; here by a graph on a CPU."""

from __future__ import annotations

import logging
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import LaFTer
from tests import tiny_run
from tests.test_engine import fit_in, timeless
from trainers import cuda_graph
from trainers.build import TRAINERS
from trainers.cuda_graph import StepGraphs
from trainers.state import tuned_state


@pytest.fixture
def replays(monkeypatch) -> list[str]:
    """Grows by a name with each part that is replayed."""
    seen = []

    def replay(recording, inputs, original=cuda_graph.Recording.replay):
        seen.append(recording.part.func.__name__)
        return original(recording, inputs)

    monkeypatch.setattr(cuda_graph.Recording, "replay", replay)
    return seen


@pytest.mark.parametrize("trainer", TRAINERS)
def test_recorded_steps_give_the_same_bits(tmp_path, trainer, replays):
    """Of a whole run: through phases and rates, with a smaller last batch and an average of the weights."""
    tiny_run.make_inputs(tmp_path)
    for mode in ("off", "on"):
        LaFTer.main(tiny_run.arguments(tmp_path, mode, "TRAIN.CUDA_GRAPH", mode, "PSEUDO_LABEL.TEACHER", "ema",
                                       "--batch_size", "5", "--scheduler", "cosine", trainer=trainer))
        if mode == "off":
            assert not replays
    # 18 images are 3 batches of 5 and one of 3; of the 4 epochs the last 3 have the same rates, the last 2 all stages
    expected = {"LaFTer": 1 + 1 + 3 + 3, "MultiLayerLaFTer": 1 + 1 + 1 + 3}[trainer]
    assert Counter(replays) == {"compute_gradients": expected, "update": expected}
    tiny_run.assert_same(*(tiny_run.record(tiny_run.run_folder(tmp_path, mode, trainer)) for mode in ("off", "on")))


class GraphOnACPU(TorchDispatchMode):
    """What a CUDA graph does: the operations once more on the memory that they were recorded with, without Python's
    part of them. Recording has run them already, so that the first replay has nothing to do."""

    def __init__(self):
        super().__init__()
        self.operations, self.fresh = [], True

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(function)  # a number that would be recorded as it is
        outputs = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, outputs in self.operations if not self.fresh else ():
            old, new = (tree_leaves(found) for found in (outputs, function(*args, **kwargs)))
            for place, value in zip(old, new):
                if torch.is_tensor(place) and place.data_ptr() != value.data_ptr():  # no view, and not in place
                    place.copy_(value)
        self.fresh = False


@pytest.fixture
def graphs_on_a_cpu(monkeypatch) -> None:
    monkeypatch.setattr(cuda_graph.StepGraphs, "stream", "one")
    monkeypatch.setattr(cuda_graph.StepGraphs, "_beside", lambda _, part, inputs: part(inputs))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", GraphOnACPU)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph)


def test_a_replayed_part_leaves_its_gradients(graphs_on_a_cpu):
    weight = nn.Parameter(torch.ones(2))
    graphs = StepGraphs([weight], enabled=True)

    def part(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        (weight * inputs["x"]).sum().backward()
        return {}

    for number in range(5):
        weight.grad = None
        graphs.run("part", part, {"x": torch.full((2,), float(number))}, "key")
        assert weight.grad.tolist() == [number, number]


@pytest.mark.parametrize("trainer, values", [("LaFTer", {"PSEUDO_LABEL.TEACHER": "ema"}),
                                             ("MultiLayerLaFTer", {"DATALOADER.TRAIN_X.MICRO_BATCH": 2})])
def test_what_a_graph_repeats_is_the_step(prepare, tmp_path, graphs_on_a_cpu, replays, trainer, values):
    """All that changes from step to step lies in memory, and what changes from epoch to epoch is in the key."""
    found = []
    for mode in ("off", "on"):
        parts = prepare(trainer, {**values, "TRAIN.CUDA_GRAPH": mode, "DATALOADER.TRAIN_X.BATCH_SIZE": 4})
        for group in parts.training.optimizer.param_groups:
            group["fused"] = True  # as on a GPU
        run, rows = fit_in(tmp_path / mode, parts)
        found.append([timeless(rows), tuned_state(parts.model), parts.training.optimizer.state_dict()["state"]])
    tiny_run.assert_same(*found)
    assert Counter(replays)["update"] == Counter(replays)["compute_gradients"] >= 6


def test_a_step_that_cannot_be_recorded_runs_as_it_is(tmp_path, monkeypatch, caplog, replays):
    tiny_run.make_inputs(tmp_path)
    LaFTer.main(tiny_run.arguments(tmp_path, "off", "--epochs", "1"))

    def fail(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nand much more")

    monkeypatch.setattr(cuda_graph.Recording, "__init__", fail)
    with caplog.at_level(logging.WARNING):
        LaFTer.main(tiny_run.arguments(tmp_path, "on", "--epochs", "1", "TRAIN.CUDA_GRAPH", "on", "--batch_size", "5"))
    assert [record.message for record in caplog.records if "recorded" in record.message] == [
        "the step is not recorded as a CUDA graph (operation not permitted when stream is capturing)"]
    assert not replays and (tiny_run.run_folder(tmp_path, "on") / "final.json").exists()


def test_a_part_is_recorded_on_memory_of_its_own_once_it_is_warm():
    seen, graphs = [], StepGraphs([nn.Parameter(torch.ones(3))], enabled=True)

    def part(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(inputs["x"].data_ptr())
        return {"y": inputs["x"] * 2}

    inputs = [{"x": torch.full((3,), float(number))} for number in range(9)]
    for number, (own, key) in enumerate(zip(inputs, [*"aaaabbb", None, "b"])):
        assert torch.equal(graphs.run("part", part, own, key)["y"], torch.full((3,), 2.0 * number))
    given = [own["x"].data_ptr() for own in inputs]
    assert [a == b for a, b in zip(seen, given)] == [True, True, False, False, True, True, False, True, False]
    assert seen[2] == seen[3] and seen[6] == seen[8]
    other = torch.ones(4)
    graphs.run("part", part, {"x": other}, "b")  # another shape is another key
    assert seen[-1] == other.data_ptr()
