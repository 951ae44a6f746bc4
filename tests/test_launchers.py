"""The launchers: each .sh and .bat hand the same arguments to LaFTer.py, from any folder, and yours come last."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils.config import load_config
from utils.demo.faces import draw_dataset
from utils.errors import InputError
from utils.flags import parse_flags
from utils.runs.record import run_folder

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
NATIVE = ".bat" if os.name == "nt" else ".sh"
# what each sets beside --resume auto; everything else stays as the data set's YAML and the defaults have it
LAUNCHERS = {
    "LaFTer": {},
    "LaFTer_DualTask": {"DUAL_TASK.ENABLED": True, "TRAIN.SUPERVISION": "labels", "OPTIM.LR_SCHEDULER": "none"},
    "LaFTer_DirectDualTask": {"DUAL_TASK.ENABLED": True, "TRAIN.SUPERVISION": "labels", "TEXT.SKIP": True,
                              "OPTIM.LR_SCHEDULER": "none"},
    "LaFTer_MultiPrompt": {"TRAINER.NAME": "MultiLayerLaFTer"},
    "zero_shot": {"TEXT.MODE": "zero_shot", "TRAIN.SKIP": True},
}
# torchrun starts it; the run is LaFTer's, in LaFTer's folder
SEVERAL = "LaFTer_MultiGPU"
SHELL = sorted(SCRIPTS.glob("*.sh"))
BATCH = sorted(SCRIPTS.glob("*.bat"))


def stem(path: Path) -> str:
    return path.name


# --- the files --------------------------------------------------------------------------------------------------------

def handed_over(path: Path) -> list[str]:
    """The words that a launcher's text gives to LaFTer.py, with its variables in one spelling for both shells."""
    text = re.sub(r"(\\|\^)\n", " ", path.read_text(encoding="ascii"))
    (line,) = [line for line in text.splitlines() if 'LaFTer.py"' in line]
    words = line.split('LaFTer.py"')[1].split()
    names = {"%DATASET%": None, "%*": '"$@"'}
    return [word for word in (names.get(word, word) for word in words) if word]


def test_every_script_has_its_twin():
    expected = {*LAUNCHERS, SEVERAL, "compare", "demo", "test", "setup_env"}
    assert {path.stem for path in SHELL} == {path.stem for path in BATCH} == expected


@pytest.mark.parametrize("name", [*LAUNCHERS, SEVERAL])
def test_both_of_a_pair_hand_over_the_same_arguments_and_say_so(name):
    shell, batch = (handed_over(SCRIPTS / (name + suffix)) for suffix in (".sh", ".bat"))
    assert shell == batch
    assert shell[-1] == '"$@"' and "--resume auto" in " ".join(shell)
    given = set(re.findall(r"--[a-z_]+(?: auto| none)?|[A-Z.]+ labels", " ".join(shell))) - {"--dataset"}
    for suffix in (".sh", ".bat"):
        head = (SCRIPTS / (name + suffix)).read_text(encoding="ascii").split("It sets ")[1].split("  ")[0]
        assert set(re.findall(r"--[a-z_]+(?: auto| none)?|[A-Z.]+ labels", head)) == given


def test_both_demos_hand_over_the_same_flags():
    shell, batch = (re.findall(r" (--[a-z-]+)", (SCRIPTS / f"demo{suffix}").read_text(encoding="ascii"))
                    for suffix in (".sh", ".bat"))
    assert set(shell) == set(batch) == {"--epochs", "--dataset-config-file", "--trainer", "--output-dir", "--resume"}


@pytest.mark.parametrize("name", [*LAUNCHERS, SEVERAL])
def test_both_of_a_pair_choose_the_data_set_alike(name):
    shell, batch = ((SCRIPTS / (name + suffix)).read_text(encoding="ascii").splitlines() for suffix in (".sh", ".bat"))
    assert 'case "${1:-}" in "" | -*) set -- emotion6 "$@" ;; esac' in shell
    start = batch.index("set DATASET=emotion6")
    assert batch[start + 1: start + 3] == ['set "FIRST=%~1"',
                                           'if defined FIRST if not "%FIRST:~0,1%"=="-" set DATASET=']
    assert handed_over(SCRIPTS / (name + ".sh"))[-2] == "--dataset-config-file"


@pytest.mark.parametrize("path", SHELL, ids=stem)
@pytest.mark.skipif(os.name == "nt", reason="needs bash and file modes")
def test_shell_files_are_valid(path):
    assert b"\r" not in path.read_bytes() and os.access(path, os.X_OK)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- what they do -----------------------------------------------------------------------------------------------------

def start(script: Path, *arguments: str, cwd: Path, python: str | None = sys.executable, **environment: str):
    """Run a script as this system's users do; `python` is LAFTER_PYTHON, None leaves the choice to setup_env."""
    command = ["cmd", "/c", str(script)] if os.name == "nt" else [str(script)]
    env = {key: value for key, value in os.environ.items() if key != "LAFTER_PYTHON"} | environment
    if python:
        env["LAFTER_PYTHON"] = python
    return subprocess.run([*command, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def make_project(folder: Path) -> Path:
    """The real scripts, no requirements, and a LaFTer.py that tells how it was called."""
    shutil.copytree(SCRIPTS, folder / "scripts")
    (folder / "requirements.txt").touch()
    (folder / "LaFTer.py").write_text(
        "import json, os, sys\nsys.stdout.write(json.dumps([sys.argv[1:], os.getcwd(), sys.prefix]) + '\\n')\n",
        encoding="utf-8")
    return folder


@pytest.fixture
def project(tmp_path) -> Path:
    return make_project(tmp_path / "the project")


@pytest.fixture
def configuration(project, tmp_path):
    """configuration(name, arguments…) → what LaFTer.py makes of the arguments that the launcher hands to it."""

    def configure(name: str, *arguments: str):
        done = start(project / "scripts" / (name + NATIVE), *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        arguments, folder, _ = json.loads(done.stdout)
        assert Path(folder) == tmp_path  # where the user stands
        flags = parse_flags(arguments)
        return load_config(flags.dataset_config_file, flags.config_file, flags.values, flags.options)

    return configure


def changed(cfg, other) -> dict[str, object]:
    """The keys of `cfg` whose values differ from those in `other`, by their full names."""
    found = {}
    for key, value in cfg.items():
        if isinstance(value, dict):
            found |= {f"{key}.{name}": inner for name, inner in changed(value, other[key]).items()}
        elif value != other[key]:
            found[key] = value
    return found


@pytest.mark.parametrize("name", LAUNCHERS)
def test_each_sets_what_its_name_says(configuration, name):
    trainer = LAUNCHERS[name].get("TRAINER.NAME", "LaFTer")
    plain = load_config("emotion6", flags={"TRAINER.NAME": trainer})
    expected = {key: value for key, value in LAUNCHERS[name].items() if key != "TRAINER.NAME"}
    assert changed(configuration(name), plain) == {"RESUME": "auto", **expected}
    assert configuration(name, "--seed", "3").SEED == 3  # the first argument is a flag: still emotion6
    assert configuration(name, "demo", "--seed", "3").DATASET.NAME == "demo"


def test_the_users_arguments_come_last(configuration):
    cfg = configuration("LaFTer_DualTask", "emotion6", "--scheduler", "coslr", "--resume", "", "--root", "my data",
                        "TRAIN.SUPERVISION", "pseudo", "MULTI_LAYER_PROMPT.STAGES", "[[0,1],[2,3]]", "--exp-name", "x")
    assert (cfg.OPTIM.LR_SCHEDULER, cfg.RESUME, cfg.DATASET.ROOT) == ("coslr", "", "my data")
    assert (cfg.TRAIN.SUPERVISION, cfg.MULTI_LAYER_PROMPT.STAGES) == ("pseudo", [[0, 1], [2, 3]])
    assert cfg.DUAL_TASK.ENABLED and cfg.EXP_NAME == "x"
    assert configuration("LaFTer", "demo", "--skip_finetune").TRAIN.SKIP
    assert configuration("LaFTer_DirectDualTask", "--multi_layer_prompt").TRAINER.NAME == "MultiLayerLaFTer"


def test_a_flag_against_the_launchers_purpose_is_refused(configuration):
    with pytest.raises(InputError, match="--multi_layer_prompt sets TRAINER.NAME"):
        configuration("LaFTer_MultiPrompt", "--trainer", "LaFTer")
    with pytest.raises(InputError, match="--zero_shot sets TEXT.MODE"):
        configuration("zero_shot", "--txt_cls", "lafter")


def test_every_launcher_and_seed_has_a_folder_of_its_own(configuration):
    """A launcher that found another's finished run in its folder would do nothing."""
    folders = {run_folder(configuration(name, "demo", "--seed", seed), "demo")
               for name in LAUNCHERS for seed in ("1", "2")}
    assert len(folders) == 2 * len(LAUNCHERS)


def test_several_processes_get_the_arguments_of_one(project, configuration, tmp_path):
    """With torchrun's own flags from TORCHRUN; the run is the one that LaFTer's launcher makes."""
    done = start(project / "scripts" / (SEVERAL + NATIVE), "demo", "--epochs", "3", cwd=tmp_path,
                 TORCHRUN="--standalone --nproc-per-node 2")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line)[0] for line in done.stdout.splitlines() if line.startswith("["))
    assert first == second == ["--resume", "auto", "--dataset-config-file", "demo", "--epochs", "3"]
    flags = parse_flags(first)
    cfg = load_config(flags.dataset_config_file, flags.config_file, flags.values, flags.options)
    assert cfg == configuration("LaFTer", "demo", "--epochs", "3")


def test_the_demo_trains_both_and_compares_them(project, tmp_path):
    (project / "utils").mkdir()
    (project / "utils" / "results.py").write_text("import sys\nprint('compared', sys.argv[1])\n", encoding="utf-8")
    done = start(project / "scripts" / ("demo" + NATIVE), "--epochs", "3", cwd=tmp_path)
    *trainings, compared = done.stdout.splitlines()
    given = [json.loads(line)[0] for line in trainings]
    assert [arguments[arguments.index("--trainer") + 1] for arguments in given] == ["LaFTer", "MultiLayerLaFTer"]
    assert all(arguments[-2:] == ["--epochs", "3"] for arguments in given)
    runs = tmp_path / "output" / "demo"
    assert [Path(arguments[arguments.index("--output-dir") + 1]) for arguments in given] == [runs, runs]
    assert compared == f"compared {runs}"


def test_an_experiment_is_handed_over_whole(project, tmp_path):
    (project / "scripts" / "compare.py").write_text(
        "import json, os, sys\nprint(json.dumps([sys.argv[1:], os.getcwd()]))\n", encoding="utf-8")
    done = start(project / "scripts" / ("compare" + NATIVE), "demo", "--jobs", "2", "--root", "my data", cwd=tmp_path)
    assert json.loads(done.stdout) == [["demo", "--jobs", "2", "--root", "my data"], str(tmp_path)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project in which a launcher was started twice, what it said, and the environment that it made."""
    project = make_project(tmp_path_factory.mktemp("made") / "the project")
    script = project / "scripts" / ("LaFTer" + NATIVE)
    said = [start(script, "demo", cwd=project.parent, python=None, PYTHON=sys.executable) for _ in range(2)]
    return SimpleNamespace(said=said, venv=project / ".venv")


def test_an_environment_is_made_once_in_the_projects_folder(made):
    for done in made.said:
        assert done.returncode == 0, done.stderr
        arguments, _, prefix = json.loads(done.stdout.splitlines()[-1])
        assert arguments[-1] == "demo" and Path(prefix) == made.venv
    assert "once" in made.said[0].stdout and "once" not in made.said[1].stdout


def fake_python(path: Path, body: str) -> Path:
    """A program that stands in for Python: `body` in sh, else the real one goes on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{body}\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


OLD = f'if [ "$1" = -c ]; then exec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 2); $2"; fi'


@pytest.mark.skipif(os.name == "nt", reason="its stand-ins for Python are shell scripts")
@pytest.mark.parametrize("variable", ["PATH", "PYTHON", "LAFTER_PYTHON", ".venv"])
def test_a_python_that_is_too_old_is_refused(project, tmp_path, variable):
    place = project / ".venv" / "bin" / "python" if variable == ".venv" else tmp_path / "old" / "python3"
    old = str(fake_python(place, OLD))
    chosen = {"PATH": {"PATH": f"{place.parent}:{os.environ['PATH']}"}, "PYTHON": {"PYTHON": old}}.get(variable, {})
    done = start(project / "scripts" / "LaFTer.sh", cwd=tmp_path, **chosen,
                 python=old if variable == "LAFTER_PYTHON" else None)
    assert done.returncode == 1 and "runs no Python 3.10 or newer" in done.stderr and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert (project / ".venv").exists() == (variable == ".venv")


@pytest.mark.skipif(os.name == "nt", reason="its stand-ins for Python are shell scripts")
@pytest.mark.parametrize("cut", ["making", "no pip", "no python", "lost python", "installing"])
def test_a_half_made_environment_is_made_anew(project, made, tmp_path, cut):
    """What is left where the first start was cut off, or where a system's update took Python away. The new environment
    is a copy of one that was made before: a whole one takes seconds."""
    whole = fake_python(tmp_path / "whole", f'if [ "$2" = venv ]; then cp -an "{made.venv}/." "$3"; '
                                              'exec rm "$3"/installed-*; fi')
    script, venv = project / "scripts" / "LaFTer.sh", project / ".venv"
    if cut == "making":
        broken = fake_python(tmp_path / "python3", 'if [ "$2" = venv ]; then mkdir -p "$3/bin"; '
                                                   'cp /bin/false "$3/bin/python"; exit 1; fi')
        first = start(script, cwd=tmp_path, python=None, PYTHON=str(broken))
        assert first.returncode == 1 and "the next start tries again" in first.stderr
        assert (venv / "bin" / "python").exists()
    elif cut == "no pip":
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    elif cut == "no python":
        venv.mkdir()
    elif cut == "lost python":
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    else:
        (project / "requirements.txt").write_text("./absent-folder\n", encoding="utf-8")
        assert start(script, cwd=tmp_path, python=None, PYTHON=str(whole)).returncode != 0
        (project / "requirements.txt").write_text("", encoding="utf-8")
    done = start(script, "demo", cwd=tmp_path, python=None, PYTHON=str(whole))
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout.splitlines()[-1])[2]) == venv and not (venv / "unfinished").exists()
    subprocess.run([str(venv / "bin" / "python"), "-m", "pip", "--version"], check=True, capture_output=True)


def test_an_interpreter_that_is_none_is_named(project, tmp_path):
    done = start(project / "scripts" / ("LaFTer" + NATIVE), cwd=tmp_path, python="no-such-python")
    assert done.returncode == 1 and done.stdout == ""
    assert 'error: LAFTER_PYTHON is "no-such-python", which runs no Python' in done.stderr


def test_a_failure_is_the_launchers_too(project, tmp_path):
    (project / "LaFTer.py").write_text("import sys\nsys.exit('error: no data')\n", encoding="utf-8")
    done = start(project / "scripts" / ("zero_shot" + NATIVE), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (1, "", "error: no data")
    assert list(tmp_path.iterdir()) == [project]


# --- the real program -------------------------------------------------------------------------------------------------

def test_zero_shot_from_another_folder_to_its_record_and_again(tmp_path):
    draw_dataset(tmp_path / "mine" / "demo", train_per_class=2, test_per_class=2)
    command = SCRIPTS / ("zero_shot" + NATIVE), "demo", "--root", "mine", "--output-dir", "runs", "--workers", "0"
    first = start(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    (final,) = tmp_path.glob("runs/demo/LaFTer/demo_clip/*/final.json")
    assert set(json.loads(final.read_text(encoding="utf-8"))["splits"]["test"]) == {"zero_shot"}
    written = final.stat().st_mtime_ns
    again = start(*command, cwd=tmp_path)
    assert again.returncode == 0 and "is finished already" in again.stdout + again.stderr
    assert final.stat().st_mtime_ns == written
