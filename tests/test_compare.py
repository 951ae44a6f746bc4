"""scripts/compare.py: what an experiment's YAML makes, what is refused, and how the runs are handed out."""

from __future__ import annotations

import _thread
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts import compare
from utils.config import flatten
from utils.demo.faces import draw_dataset
from utils.errors import InputError
from utils.runs.experiment import read_experiment

PROJECT = Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted((PROJECT / "configs" / "experiments").glob("*.yaml"))
PLAIN = """
output: runs
options: --dataset-config-file demo --epochs 3
seeds: [1, 2]
axes:
  method:
    LaFTer: --trainer LaFTer
    staged: --trainer MultiLayerLaFTer
  rate:
    slow: --lr 1e-4
    fast: [--lr, 1e-2, MULTI_LAYER_PROMPT.MODE, replace]
"""


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """experiment(text, …) → the cells of a YAML with this text, read where the runs' folder would be made."""
    monkeypatch.chdir(tmp_path)

    def read(text: str = PLAIN, **settings):
        (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
        return read_experiment(Path("x.yaml"), **settings)

    return read


# --- the grid --------------------------------------------------------------------------------------------------------

def test_a_grid_is_every_combination_seed_by_seed(experiment):
    cells = experiment()
    assert [cell.name for cell in cells] == [
        f"demo/{folder}-seed{seed}" for seed in (1, 2) for folder in (
            "LaFTer/demo_clip/slow", "LaFTer/demo_clip/fast",  # LaFTer stands in the folder already
            "MultiLayerLaFTer/demo_clip/staged-slow", "MultiLayerLaFTer/demo_clip/staged-fast")]
    last = cells[-1]
    assert last.folder == Path("runs", *last.name.split("/"))
    assert (last.cfg.OPTIM.LR, last.cfg.OPTIM.MAX_EPOCH, last.cfg.SEED, last.cfg.RESUME) == (1e-2, 3, 2, "auto")
    assert last.cfg.MULTI_LAYER_PROMPT.MODE == "replace" and last.cfg.TRAINER.NAME == "MultiLayerLaFTer"
    assert cells[0].arguments == (
        "--dataset-config-file", "demo", "--epochs", "3", "--trainer", "LaFTer", "--lr", "1e-4", "--output-dir", "runs",
        "--exp-name", "slow-seed1", "--seed", "1", "--resume", "auto")


def test_arguments_of_the_command_line_come_last(experiment):
    cells = experiment(output="elsewhere", extra=["--epochs", "7", "OPTIM.LR", "0.5", "--root", "my data"])
    assert {(cell.cfg.OPTIM.MAX_EPOCH, cell.cfg.OPTIM.LR, cell.cfg.DATASET.ROOT) for cell in cells} == {
        (7, 0.5, "my data")}
    assert all(cell.folder.parts[0] == "elsewhere" for cell in cells)


def test_an_experiment_needs_little(experiment):
    (cell,) = experiment("output: runs\noptions: --dataset-config-file demo --root 'C:\\my data\\x'\n")
    assert cell.name == "demo/LaFTer/demo_clip/seed1"
    assert cell.cfg.DATASET.ROOT == "C:\\my data\\x"  # a backslash is no escape


@pytest.mark.parametrize("text, words", [
    (PLAIN + "sedes: [1]", "unknown key sedes; an experiment has output, options, seeds, axes"),
    ("- a\n- b", "must hold KEY: value pairs"),
    ("options: [", "x.yaml is no valid YAML: while parsing"),
    (PLAIN.replace("output: runs", ""), "'output' must name the folder"),
    (PLAIN.replace("[1, 2]", "[1, one]"), "'seeds' must be a list of integers, not [1, 'one']"),
    (PLAIN.replace("[1, 2]", "[]"), "'seeds' must be a list of integers"),
    (PLAIN.replace("[1, 2]", "[2, 2]"), "a seed stands twice in [2, 2]"),
    (PLAIN.replace("staged:", "LaFTer:"), "'LaFTer' stands twice in one place (line 7)"),
    (PLAIN.replace("slow:", "on:"), "True cannot be a level's name"),
    (PLAIN.replace("slow:", "a/b:"), "'a/b' cannot be a level's name"),
    (PLAIN.replace("--lr 1e-4", "--lr '1e-4"), "has an open quote"),
    (PLAIN.replace("--lr 1e-4", "4"), "x.yaml: rate, slow must be options of LaFTer.py, as one text or a list, not 4"),
    (PLAIN.replace("--lr 1e-4", "--rate 1e-4"), "x.yaml, LaFTer, slow: unknown flag --rate"),
    (PLAIN.replace("--lr 1e-4", "--lr -1"), "LaFTer, slow: OPTIM.LR is -1.0; it must be above 0"),
    (PLAIN.replace("MULTI_LAYER_PROMPT.MODE", "MODE"), "LaFTer, fast: unknown key MODE"),
    (PLAIN.replace("demo", "nowhere"), "LaFTer, slow: no configuration file nowhere"),
    (PLAIN.replace("--lr 1e-4", "--seed 3"), "LaFTer, slow: SEED cannot be an option"),
    (PLAIN.replace("--lr 1e-4", "EXP_NAME x"), "LaFTer, slow: EXP_NAME cannot be an option"),
    (PLAIN.replace("--lr 1e-4", "--list"), "--eval-only, --predict and --list cannot be options"),
    (PLAIN.replace("LaFTer:", "demo:").replace("staged: --trainer MultiLayer", "LaFTer: --trainer "),
     "two runs share the folder"),
])
def test_what_is_wrong_is_told_in_one_line(experiment, text, words):
    with pytest.raises((InputError, FileNotFoundError)) as told:
        experiment(text)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_folder_with_another_run_is_named_before_anything_starts(experiment):
    first = experiment()[0]
    first.folder.mkdir(parents=True)
    cfg = first.cfg.clone()
    cfg.defrost()
    cfg.OPTIM.LR = 0.25
    (first.folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    (first.folder / "final.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="slow: .*holds another run: OPTIM.LR is 0.25 there"):
        experiment()


read_once = functools.cache(read_experiment)  # the largest takes seconds


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_experiments_of_the_project(path, tmp_path, monkeypatch):
    """Each is valid, and its header names its command and its number of runs."""
    monkeypatch.chdir(tmp_path)
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"--dataset-config-file (\w+)", text)
    absent = [name for name in named if not (PROJECT / "configs" / "datasets" / f"{name}.yaml").is_file()]
    if absent:
        pytest.skip(f"needs the data sets {', '.join(absent)}")
    cells = read_once(path)
    header = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    assert f"python scripts/compare.py configs/experiments/{path.name}" in header
    assert int(re.search(r"(\d+) runs", header)[1]) == len(cells)


def test_the_ablation_changes_one_thing_at_a_time():
    cells = {cell.folder.name: cell.cfg for cell in read_once(PROJECT / "configs/experiments/ablation.yaml")}
    assert len(cells) == 135
    base = dict(flatten(cells["base-seed1"]))
    for name, cfg in cells.items():
        if name.endswith("-seed1") and not name.startswith(("base", "shallow")):
            changed = {key for key, value in flatten(cfg) if value != base[key]} - {"EXP_NAME"}
            assert len(changed) == 1, (name, changed)


# --- running ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import json, os, pathlib, sys, time
name, marks, seconds = sys.argv[1:]
folder = pathlib.Path(name)
mark = pathlib.Path(marks) / f"{len(os.listdir(marks)):03}-{folder.parent.parent.name}-{folder.name}"
mark.write_text(json.dumps({key: os.environ.get(key) for key in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}))
time.sleep(float(seconds))
if "fast" in name and "seed2" in name:
    sys.exit("error: it broke")
folder.mkdir(parents=True, exist_ok=True)
(folder / "final.json").write_text("{}")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """In place of LaFTer.py, whose start takes seconds: a program that writes final.json, or fails where its name has
    `fast` and `seed2`. Returns the folder in which each start leaves a file."""
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr(compare, "command", lambda cell: [sys.executable, "-c", PROGRAM, str(cell.folder), str(marks),
                                                          "0.2"])
    monkeypatch.setattr(compare, "prepare", lambda cells: {})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return marks


def test_what_fails_does_not_stop_the_rest_and_what_is_finished_is_not_run(experiment, stand_in):
    cells = experiment()
    cells[0].folder.mkdir(parents=True)
    (cells[0].folder / "final.json").write_text("{}", encoding="utf-8")
    failures = compare.run_cells(cells, 2, [])
    assert set(failures) == {"demo/LaFTer/demo_clip/fast-seed2", "demo/MultiLayerLaFTer/demo_clip/staged-fast-seed2"}
    assert all(reason.startswith("error: it broke (see ") for reason in failures.values())
    assert sum(cell.finished for cell in cells) == 6 and len(list(stand_in.iterdir())) == 7
    assert cells[1].log.read_text(encoding="utf-8").startswith("$ ") and cells[1].log.parent == cells[1].folder.parent
    assert compare.run_cells(cells, 2, []).keys() == failures.keys()  # only these are tried again
    assert len(list(stand_in.iterdir())) == 9


@pytest.mark.skipif(os.name == "nt", reason="processes end otherwise there")
def test_a_run_that_the_system_kills_is_told_so(experiment, stand_in, monkeypatch):
    program = "import os; print('epoch 3/8: loss 0.91', flush=True); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(compare, "command", lambda cell: [sys.executable, "-c", program])
    (reason,) = compare.run_cells(experiment()[:1], 1, []).values()
    assert reason.startswith("killed by signal 9 after: epoch 3/8: loss 0.91 (see ")


def test_a_damaged_record_does_not_hide_what_failed(experiment, stand_in, capsys):
    experiment()
    with pytest.raises(InputError, match="final.json is no result of a run"):  # the stand-in writes {}
        compare.main(["x.yaml", "--jobs", "4"])
    assert capsys.readouterr().err.count("failed: demo/LaFTer/demo_clip/fast-seed2: error: it broke") == 1


@pytest.mark.parametrize("jobs, gpus, seen", [(2, ["0", "3"], {"0", "3"}), (1, [], {None})])
def test_each_job_has_its_gpu_and_its_share_of_the_cores(experiment, stand_in, monkeypatch, jobs, gpus, seen):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    compare.run_cells(experiment()[:4], jobs, gpus)
    environments = [json.loads(mark.read_text()) for mark in stand_in.iterdir()]
    assert {env["CUDA_VISIBLE_DEVICES"] for env in environments} == seen
    assert {env["OMP_NUM_THREADS"] for env in environments} == {str(12 // jobs)}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")  # a user's own stays
    assert compare.environment(0, 2, [])["OMP_NUM_THREADS"] == "5"


def test_an_interrupt_ends_every_run(experiment, stand_in, monkeypatch):
    cells = experiment()
    started = []
    monkeypatch.setattr(compare, "command", lambda cell: [sys.executable, "-c", "import time; time.sleep(60)"])
    original = compare.start
    monkeypatch.setattr(compare, "start", lambda *args: started.append(original(*args)) or started[-1])
    threading.Timer(0.5, _thread.interrupt_main).start()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            compare.run_cells(cells, 3, [])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 3 and all(process.poll() is not None for process in started)


def test_absent_data_fails_its_runs_alone(experiment, tmp_path):
    draw_dataset(tmp_path / "data" / "demo", train_per_class=1, test_per_class=1)
    text = PLAIN.replace("  rate:\n    slow: --lr 1e-4\n", "  rate:\n    gone: --dataset-config-file emotion6 "
                         "--backbone ViT-B/32\n    split: MULTI_LAYER_PROMPT.STAGES [[0,1],[3]]\n")
    cells = experiment(text)
    reasons = compare.prepare(cells)
    assert {name.split("/")[-1] for name in reasons} == {f"{method}{rate}-seed{seed}" for seed in (1, 2) for method in
                                                         ("", "staged-") for rate in ("gone", "split")}
    for name, reason in reasons.items():
        assert ("Emotion6" if "gone" in name else "do not divide the 12 layers") in reason


def test_only_some_and_a_dry_run(experiment, capsys):
    experiment()
    compare.main(["x.yaml", "--dry-run", "--only", "slow-seed1", "--epochs", "9"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" (")[0] for line in lines] == ["demo/LaFTer/demo_clip/slow-seed1",
                                                       "demo/MultiLayerLaFTer/demo_clip/staged-slow-seed1"]
    assert all("(to run): " in line and "--epochs 9" in line for line in lines)
    assert not Path("runs").exists()
    for pattern, words in (("nothing", "matches none of the 8 runs"), ("(", "is no regular expression")):
        with pytest.raises(InputError, match=words):
            compare.main(["x.yaml", "--dry-run", "--only", pattern])
    with pytest.raises(FileNotFoundError, match="no experiment y.yaml; known by name: ablation, "):
        compare.main(["y.yaml"])


# --- the real program -------------------------------------------------------------------------------------------------

def test_a_real_grid_to_its_report(tmp_path, monkeypatch, capsys):
    """A zero-shot run, and one that fails while it runs, at the same time; then the report. Again: only the failed.
    With another image the finished run is not shown as if it were of it."""
    draw_dataset(tmp_path / "data" / "demo", train_per_class=2, test_per_class=2)
    (tmp_path / "x.yaml").write_text(
        "output: runs\noptions: --dataset-config-file demo --workers 0 --zero_shot\n"
        "axes:\n  text:\n    photo: TEXT.ZERO_SHOT_TEMPLATE 'a face, {}'\n"
        "    broken: TEXT.ZERO_SHOT_TEMPLATE nothing\n", encoding="utf-8")
    command = [sys.executable, str(PROJECT / "scripts" / "compare.py"), "x.yaml", "--jobs", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    again = "1 of 2 runs failed; the same command tries them again"
    assert done.stderr.strip().splitlines()[-1] == again
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=again):
        compare.main(command[2:])
    failed = "failed: demo/LaFTer/demo_clip/broken-seed1: error: TEXT.ZERO_SHOT_TEMPLATE"
    assert failed in done.stderr and failed in capsys.readouterr().err
    assert "LaFTer (photo)" in done.stderr and str(Path("runs") / "report.html") in done.stderr
    assert "LaFTer (photo)" in (tmp_path / "runs" / "results.md").read_text(encoding="utf-8")
    assert (tmp_path / "runs" / "report.html").is_file()
    logs = {path.stem: path.read_text(encoding="utf-8").count("$ ") for path in tmp_path.rglob("runs/**/*seed1.log")}
    assert logs == {"photo-seed1": 1, "broken-seed1": 2}

    cells = read_experiment(Path("x.yaml"))
    assert compare.prepare(cells) == {}
    victim = sorted((tmp_path / "data" / "demo" / "images" / "test").iterdir())[0]
    victim.write_bytes(victim.read_bytes() + b"\0")
    ((name, told),) = compare.prepare(cells).items()
    assert name.endswith("photo-seed1") and re.search(f"another run: image .*{victim.name} of the test split has", told)


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_terminating_the_program_ends_its_runs(tmp_path):
    (tmp_path / "x.yaml").write_text("output: runs\noptions: --dataset-config-file demo --workers 0\n",
                                     encoding="utf-8")
    draw_dataset(tmp_path / "data" / "demo", train_per_class=2, test_per_class=2)
    command = ["nohup", sys.executable, str(PROJECT / "scripts" / "compare.py"), "x.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    record = tmp_path / "runs" / "demo" / "LaFTer" / "demo_clip" / "seed1" / "log.txt"
    while not record.exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)  # nohup: it is to live on when the terminal is gone
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "stopped; the same command goes on" in errors
    before = record.read_text(encoding="utf-8")
    time.sleep(1)
    assert record.read_text(encoding="utf-8") == before  # nothing writes it any more
    assert not (record.parent / "final.json").exists()
