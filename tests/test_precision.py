"""MODEL.PRECISION auto: what it becomes on a device, and that a run goes on and is scored with it; TF32."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from yacs.config import CfgNode

import clip
import LaFTer
from clip.precision import bf16_speedup, choose_precision
from tests import tiny_run
from trainers import build
from trainers import precision as precisions
from utils.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize("capability, precision", [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16"),
                                                   ((12, 0), "bf16")])
def test_cuda_takes_bf16_from_ampere_on(monkeypatch, capability, precision):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert choose_precision(torch.device("cuda")) == precision


@pytest.mark.parametrize("bf16, asked, expected", [(0.25, 4, 4.0), (2.0, 4, 0.5), (20.0, 1, 0.05)])
def test_a_cpu_is_measured(monkeypatch, bf16, asked, expected):
    """The fastest of three products each; where bf16 is far slower it is not asked again."""
    now, calls = [0.0], []

    def takes(seconds, name):
        def product(*_):
            calls.append(name)
            now[0] += seconds * (1 if calls.count(name) == 3 else 3 if len(calls) > 2 else 1)
        return product

    monkeypatch.setattr("clip.precision.time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr("clip.precision.linear", takes(1.0, "fp32"))
    monkeypatch.setattr("clip.precision.F", SimpleNamespace(linear=takes(bf16, "bf16")))
    assert bf16_speedup() == pytest.approx(expected) and calls.count("bf16") == asked == calls.count("fp32")
    assert choose_precision(torch.device("meta")) == "fp32"


def test_a_cpu_is_measured_for_real():
    assert 0.01 < bf16_speedup() < 100


@pytest.fixture
def fast(monkeypatch):
    """A device that multiplies bf16 fast, or not: set `speedup`."""
    cpu = SimpleNamespace(speedup=3.0)
    monkeypatch.setattr("clip.precision.bf16_speedup", lambda: cpu.speedup)
    return cpu


def test_clip_load_takes_auto(fast, tmp_path):
    tiny_run.make_inputs(tmp_path, 1, 1)
    assert clip.load(tmp_path / "clip.pt", precision="auto")[0].precision == "bf16"
    fast.speedup = 1.1
    assert clip.load(tmp_path / "clip.pt", precision="auto")[0].precision == "fp32"
    with pytest.raises(clip.ClipError, match="unknown precision 'fp8'"):
        clip.load(tmp_path / "clip.pt", precision="fp8")


def test_a_run_goes_on_and_is_scored_in_the_precision_that_auto_became(fast, tmp_path):
    tiny_run.make_inputs(tmp_path)
    auto = tiny_run.arguments(tmp_path, "x", "MODEL.PRECISION", "auto")
    final, run = LaFTer.main(auto), tiny_run.run_folder(tmp_path, "x")
    assert final["environment"]["precision"] == "bf16" == config(run).MODEL.PRECISION
    explicit = LaFTer.main(tiny_run.arguments(tmp_path, "y", "MODEL.PRECISION", "bf16"))
    assert explicit["splits"]["test"]["last"]["top1"] == final["splits"]["test"]["last"]["top1"]

    fast.speedup = 0.5  # as another machine, or a noisy moment, would have it
    whole = tiny_run.record(run)
    (run / "final.json").unlink()
    with pytest.raises(InputError, match="MODEL.PRECISION is 'bf16' there and 'fp32' here"):
        LaFTer.main(tiny_run.arguments(tmp_path, "x", "--resume", "auto"))
    LaFTer.main([*auto, "--resume", "auto"])
    tiny_run.assert_same(tiny_run.record(run), whole)
    (checkpoint,) = (run / "checkpoints").glob("epoch*.pt")
    LaFTer.main([*tiny_run.arguments(tmp_path, "z", "MODEL.PRECISION", "auto"), "--resume", str(checkpoint)])
    assert config(tiny_run.run_folder(tmp_path, "z")).MODEL.PRECISION == "bf16"

    for options in ((), ("MODEL.PRECISION", "auto")):
        assert LaFTer.main(["--eval-only", "--model-dir", str(run), *options])["changed"] == {}
    assert LaFTer.main(["--eval-only", "--model-dir", str(run), "MODEL.PRECISION", "fp32"])["changed"]
    LaFTer.main(["--predict", str(tmp_path / "data" / "test"), "--model-dir", str(run), "MODEL.PRECISION", "auto"])
    assert json.loads((run / "predictions.jsonl").read_text().splitlines()[0])["confidence"] > 0


def config(run) -> CfgNode:
    return CfgNode.load_cfg((run / "config.yaml").read_text())


def test_of_several_processes_the_first_decides(make_cfg, monkeypatch, tmp_path):
    cfg = make_cfg({"MODEL.PRECISION": "auto"})
    monkeypatch.setattr(precisions, "choose_precision", lambda device: pytest.fail("another process measured"))
    monkeypatch.setattr("trainers.distributed.is_main", lambda: False)
    monkeypatch.setattr("trainers.distributed.broadcast", lambda value: "bf16" if value is None else value)
    assert precisions.settle_precision(cfg, tmp_path / "none").MODEL.PRECISION == "bf16"
    fixed = make_cfg({"MODEL.PRECISION": "fp16"})
    assert precisions.settle_precision(fixed, tmp_path) is fixed


@pytest.mark.parametrize("precision, speedup, images, told", [
    ("fp32", 3.0, 10 ** 9, True), ("fp32", 1.2, 10 ** 9, False), ("bf16", 3.0, 10 ** 9, False),
    ("fp32", 3.0, 9, False)])
def test_a_long_run_in_fp32_is_told_of_bf16(fast, make_clip, make_cfg, caplog, precision, speedup, images, told):
    fast.speedup = speedup
    with caplog.at_level(logging.INFO):
        precisions.suggest_precision(make_clip(2), make_cfg({"MODEL.PRECISION": precision}), images)
    assert ("MODEL.PRECISION bf16, or auto" in caplog.text) == told


def test_tf32_is_set_both_ways_and_by_no_import():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    assert before[0] == "highest"
    try:
        for allowed, expected in ((True, ("high", True)), (False, ("highest", False))):
            build.allow_tf32(allowed)
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == expected
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
