"""Two processes by torchrun on the CPU against one: the same losses, metrics and weights to within rounding."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import LaFTer
from tests import tiny_run
from tests.warm_start import PROJECT, Program
from utils.data.loader import EpochSampler, build_loader
from utils.errors import InputError
from utils.runs.checkpoint import find_latest, load_checkpoint
from utils.runs.record import read_rows

MODES = {
    "LaFTer": ["PSEUDO_LABEL.TEACHER", "ema", "PSEUDO_LABEL.EMA_DECAY", "0.9", "OPTIM.ACCUMULATE", "2",
               "OPTIM.MAX_GRAD_NORM", "2.0"],
    "MultiLayerLaFTer": ["TRAIN.SUPERVISION", "labels", "TRAIN.AUGMENT", "True", "DUAL_TASK.ENABLED", "True",
                         "DATASET.DISTRIBUTION_STRATEGY", "strategy1", "DATASET.CIRCLE", "[blue, green, red]"],
}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **more}


def start_two(launch, *arguments: str) -> list[Program]:
    """Two processes of the program with the variables that torchrun sets; without its own process and its start."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [launch(*arguments, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                   MASTER_PORT=port) for rank in range(2)]


def ends(processes: list[Program]) -> list[tuple[int, str]]:
    """(exit status, what was said) of each."""
    return [(process.returncode, err) for process in processes for _, err in [process.communicate()]]


def torchrun(*arguments: str) -> list[tuple[int, str]]:
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                           str(PROJECT / "LaFTer.py"), *arguments], env=environment(), capture_output=True, text=True,
                          timeout=300)
    return [(done.returncode, done.stderr)]


def nearly(a: object, b: object) -> bool:
    """Equal but for rounding."""
    if isinstance(a, torch.Tensor):
        return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=2e-5)
    return a == pytest.approx(b, rel=1e-5, abs=1e-6) if isinstance(a, float) else a == b


@pytest.mark.parametrize("trainer", MODES)
def test_two_processes_do_what_one_does(tmp_path, launch, trainer):
    """Neither batches nor splits divide evenly: 7, 7 and 4 images, or 14 and 1, of which the second has none. One
    trainer by torchrun itself."""
    tiny_run.make_inputs(tmp_path, train=6 if trainer == "LaFTer" else 7)
    LaFTer.main(tiny_run.arguments(tmp_path, "one", *MODES[trainer], trainer=trainer))
    command = tiny_run.arguments(tmp_path, "two", *MODES[trainer], trainer=trainer)
    ended = torchrun(*command) if trainer == "LaFTer" else ends(start_two(launch, *command))
    said = "".join(err for _, err in ended)
    assert not any(status for status, _ in ended), said[-3000:]
    one, two = (tiny_run.record(tiny_run.run_folder(tmp_path, name, trainer)) for name in ("one", "two"))
    for state in (one[2], two[2]):
        del state["rng"]
    for a, b, part in zip(one, two, ("final", "rows", "checkpoint")):
        tiny_run.assert_same(a, b, part, nearly)
    assert said.count("epoch 4/4: loss") == 1  # one of them speaks
    folder = str(tiny_run.run_folder(tmp_path, "two", trainer))
    for status, said in ends(start_two(launch, "--eval-only", "--model-dir", folder, "--device", "cpu")):
        assert status == 0, said
    (again,), (page,) = Path(folder).glob("eval_*.json"), Path(folder).glob("eval_*.html")
    assert page.read_text(encoding="utf-8").count("<article") >= 9
    scored = json.loads(again.read_text(encoding="utf-8"))["splits"]
    tiny_run.assert_same({split: scored[split]["tuned"] for split in scored},
                         {split: one[1][-1][split] for split in scored}, "again", nearly)


def test_shards_of_every_batch_make_the_whole_epoch_once():
    def batches(rank: int, processes: int, start: int = 0) -> list[list[tuple[int, int]]]:
        sampler = EpochSampler(18, 3, True, batch_size=7, shard=(rank, processes))
        sampler.epoch, sampler.start = 2, start
        assert len(sampler) == len(list(sampler)) == 3 - start
        assert [sampler.batch_images(batch) for batch in range(3)] == [7, 7, 4]
        return list(sampler)

    whole = batches(0, 1)
    assert sorted(index for batch in whole for _, index in batch) == list(range(18))
    assert batches(0, 1, start=1) == whole[1:]
    shards = [batches(rank, 5) for rank in range(5)]
    assert [[len(batch) for batch in shard] for shard in shards] == [[2, 2, 1], [2, 2, 1], [1, 1, 1], [1, 1, 1],
                                                                     [1, 1, 0]]
    for rank, shard in enumerate(shards):
        assert shard == [batch[rank::5] for batch in whole]
    with pytest.raises(InputError, match="a batch of 3 cannot be divided over 4 processes"):
        build_loader([], {}, 3, 0, shard=(0, 4))


def test_bad_input_in_one_process_ends_all_with_one_message(tmp_path, launch):
    tiny_run.make_inputs(tmp_path)
    for victim in (tmp_path / "data" / "train" / "green").iterdir():
        victim.write_bytes(victim.read_bytes()[:200])
    arguments = tiny_run.arguments(tmp_path, "x", "TEXT.SKIP", "True", "TRAIN.SUPERVISION", "labels")
    (first, said), (second, echoed) = ends(start_two(launch, *arguments))
    assert (first, second) == (1, 1)
    assert (said + echoed).count("error: ") == (said + echoed).count("error: 6 images cannot be read: ") == 1
    assert "Traceback" not in said + echoed


def test_what_all_meet_before_they_can_talk_is_said_once(launch):
    (first, said), (second, echoed) = ends(start_two(launch, "--dataset-config-file", "folder", "OPTIM.LR", "-1"))
    assert (first, second) == (1, 1)
    assert said.startswith("error: ") and "OPTIM.LR" in said and not echoed


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_process_that_dies_does_not_leave_the_other_hanging(tmp_path, launch):
    tiny_run.make_inputs(tmp_path)
    processes = start_two(launch, *tiny_run.arguments(tmp_path, "x", "--epochs", "2000"))
    wait_for(lambda: count_rows(tiny_run.run_folder(tmp_path, "x")) > 1)
    processes[1].send_signal(signal.SIGKILL)
    (status, said), _ = ends(processes)
    assert status == 1 and "error: another process of this run has ended" in said and "Traceback" not in said


@pytest.mark.skipif(os.name == "nt", reason="needs SIGTERM")
def test_a_signal_stops_all_processes_after_the_same_step_and_saves(tmp_path, launch):
    """As torchrun passes SIGTERM on, to all."""
    tiny_run.make_inputs(tmp_path)
    arguments = tiny_run.arguments(tmp_path, "x", "--epochs", "2000")
    run = tiny_run.run_folder(tmp_path, "x")
    processes = start_two(launch, *arguments)
    wait_for(lambda: count_rows(run) > 1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    (first, said), (second, _) = ends(processes)
    assert (first, second) == (143, 143) and "stopped by SIGTERM" in said and "Traceback" not in said
    assert not (run / "final.json").exists()
    state = load_checkpoint(find_latest(run), {})
    assert state["epoch"] >= len(read_rows(run / "metrics.jsonl")) - 2


def count_rows(run: Path) -> int:
    """Of the epochs that it has written down."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
