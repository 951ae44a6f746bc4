"""Runs that are killed or told to stop, anywhere, and resumed: the same weights and figures to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_run

PROJECT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}


@pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("trainer", tiny_run.TRAINERS)
def test_a_run_killed_anywhere_resumes_to_the_same_last_bit(tmp_path, trainer):
    tiny_run.make_inputs(tmp_path)
    done = subprocess.run([sys.executable, "-m", "tests.kill_driver", str(tmp_path), trainer, "12"], cwd=PROJECT,
                          env=ENVIRONMENT, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    events = json.loads(done.stdout)
    points = events["killed"]
    assert len(points) >= 20 and events["stopped"] == ["step", "evaluation", "writing", "text classifier"]
    assert {"text phase", "text classifier", "step", "update", "evaluation", "writing", "row", "deletion",
            "before renaming epoch0002.pt", "after renaming epoch0002.pt", "before renaming best.pt",
            "before renaming config.yaml", "before renaming split.json", "before renaming final.json"} <= set(points)
