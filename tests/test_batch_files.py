"""The .bat launchers: their text; and as cmd.exe runs them, on Windows or under wine, where a python.bat that notes its
calls is Python."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
WINE = shutil.which("wine")
PYTHON = """@echo off
>> "%CALLS%" echo %*
if "%~1"=="-c" exit /b %CHECK%
exit /b %STATUS%
"""
BATCH = sorted(SCRIPTS.glob("*.bat"))
CHECK = '-c "import sys; sys.exit(sys.version_info < (3, 10))"'


@pytest.mark.parametrize("path", BATCH, ids=lambda path: path.name)
def test_batch_files_are_plain(path):
    """CRLF, ASCII, commands of every cmd.exe, and nothing that waits for a key."""
    content = path.read_bytes()
    assert content.endswith(b"\r\n") and content.count(b"\n") == content.count(b"\r\n") == content.count(b"\r")
    lines = re.sub(r"\^\n", "", path.read_text(encoding="ascii")).splitlines()
    assert lines[0] == "@echo off"
    known = {"@echo", "rem", "setlocal", "set", "call", "if", "for", "goto", ":own", ":install", ":refuse", "cd",
             "echo", "del", "exit", '"%PY%"'}
    assert {line.split()[0] for line in lines} <= known
    commands = [line for line in lines if not line.startswith("rem")]
    assert not any("||" in line or "&&" in line for line in commands)  # what wine's cmd.exe does otherwise
    assert all(re.search(r'"[^"]*%(VENV|PROJECT|PY|RUNS)%[^"]*"', line) for line in commands
               if re.search("%(VENV|PROJECT|PY|RUNS)%", line))  # a path may hold an & or a parenthesis
    if path.name != "setup_env.bat":  # there it is the .venv's own python.exe
        assert not any(line.startswith('"%PY%"') for line in commands)  # a python.bat would not come back
    assert not any(word in line for line in lines if not line.startswith("rem") for word in
                   ("pause", "powershell", "timeout", "enabledelayedexpansion"))


def write_batch(path: Path, text: str) -> None:
    path.write_bytes(text.replace("\n", "\r\n").encode("ascii"))


@pytest.fixture(scope="module")
def cmd(tmp_path_factory):
    """cmd(file) → what cmd.exe says to a batch file. Under wine all of them share one new drive C."""
    if os.name != "nt" and not WINE:
        pytest.skip("needs cmd.exe: Windows, or wine")
    env = dict(os.environ)
    if WINE:
        env |= {"WINEPREFIX": str(tmp_path_factory.mktemp("wine")), "WINEDEBUG": "-all", "DISPLAY": ""}

    def run(path: Path) -> list[str]:
        command = [WINE, "cmd", "/c", windows(path)] if WINE else ["cmd", "/c", str(path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=path.parent)
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines()]
        return [line for line in lines if line and not line.startswith("wine: ")]

    return run


def windows(path: Path) -> str:
    """A path as Windows has it: under wine Z: is the root."""
    return "Z:" + str(path).replace("/", "\\") if WINE else str(path)


@pytest.fixture
def start(cmd, tmp_path):
    """start((script, arguments), …, CHECK=…, STATUS=…) → (what was said, python's calls); after each script its status
    is told. The project's path holds what cmd.exe takes for more than letters."""
    project, here = tmp_path / "the project & (co)", tmp_path / "here"
    shutil.copytree(SCRIPTS, project / "scripts")
    here.mkdir()
    (tmp_path / "my bin").mkdir()
    write_batch(tmp_path / "my bin" / "python.bat", PYTHON)
    calls = tmp_path / "calls.txt"

    def run(*scripts: tuple[str, str], check: int = 0, status: int = 0,
            python: str | None = windows(tmp_path / "my bin" / "python.bat")) -> tuple[list[str], list[str]]:
        calls.unlink(missing_ok=True)
        lines = ["@echo off", f'set "CALLS={windows(calls)}"', f'cd /d "{windows(here)}"', f"set CHECK={check}",
                 f"set STATUS={status}", f'set "PATH={windows(tmp_path / "my bin")};%PATH%"',
                 f'set "LAFTER_PYTHON={python or ""}"', "set TORCHRUN="]
        for name, arguments in scripts:
            path = windows(project / "scripts" / f"{name}.bat")
            lines += [f'call "{path}" {arguments}', f"echo {name}: status %ERRORLEVEL%"]
        write_batch(tmp_path / "drive.bat", "\n".join(lines) + "\n")
        said = cmd(tmp_path / "drive.bat")
        told = calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []
        return said, [line.strip().replace(windows(project), "PROJECT").replace(windows(here), "HERE") for line in told]

    return run


def test_what_each_hands_over_and_in_which_order(start):
    given = 'demo --root "my data"'
    said, calls = start(("LaFTer", given), ("LaFTer_DualTask", given), ("LaFTer_DirectDualTask", "--epochs 3"),
                        ("LaFTer_MultiPrompt", given), ("zero_shot", ""), ("LaFTer_MultiGPU", given),
                        ("compare", 'demo --only "a|b"'), ("demo", "--epochs 3"), ("test", "tests/x.py"))
    program = '"PROJECT\\LaFTer.py"'
    demo = f'{program} --dataset-config-file demo --output-dir "HERE\\output\\demo" --resume auto --trainer'
    assert [" ".join(call.split()) for call in calls if call != CHECK] == [
        f"{program} --resume auto --dataset-config-file {given}",
        f"{program} --resume auto --dual_task --scheduler none TRAIN.SUPERVISION labels --dataset-config-file {given}",
        f"{program} --resume auto --direct_dualtask --scheduler none --dataset-config-file emotion6 --epochs 3",
        f"{program} --resume auto --multi_layer_prompt --dataset-config-file {given}",
        f"{program} --resume auto --zero_shot --dataset-config-file emotion6",
        f"-m torch.distributed.run --standalone --nproc-per-node gpu {program} --resume auto --dataset-config-file "
        f"{given}",
        '"PROJECT\\scripts\\compare.py" demo --only "a|b"',
        f"{demo} LaFTer --epochs 3", f"{demo} MultiLayerLaFTer --epochs 3", '-m utils.results "HERE\\output\\demo"',
        "-m ruff check .", "-m pytest -n 2 --dist worksteal tests/x.py"]
    assert calls.count(CHECK) == 9
    assert said == [f"{name}: status 0" for name in ("LaFTer", "LaFTer_DualTask", "LaFTer_DirectDualTask",
                                                     "LaFTer_MultiPrompt", "zero_shot", "LaFTer_MultiGPU", "compare",
                                                     "demo", "test")]


def test_what_fails_ends_the_script(start):
    said, calls = start(("LaFTer", "demo"), ("demo", ""), ("test", ""), status=1)
    assert said == ["LaFTer: status 1", "demo: status 1", "test: status 1"]
    first, demo, lint = (call for call in calls if call != CHECK)
    assert demo.endswith("--trainer LaFTer") and lint == "-m ruff check ."


def test_a_python_that_is_too_old_or_none_is_refused(start):
    for python, check in (("", 1), ("no-such-python", 0)):
        said, calls = start(("LaFTer", "demo"), check=check, **({"python": python} if python else {}))
        assert set(calls) <= {CHECK} and "LaFTer: status 1" in said
        told = [line for line in said if line.startswith("error: LAFTER_PYTHON is ")]
        assert len(told) == 1 and (python or "python.bat") in told[0]


def test_an_environment_that_cannot_be_made_is_no_success(start):
    """The python on the PATH, a python.bat as version managers have, makes none: its .venv has no Python."""
    said, calls = start(("LaFTer", "demo"), python=None)
    assert calls == [CHECK, '-m venv "PROJECT\\.venv"']
    assert said[0].startswith('making "') and "LaFTer: status 1" in said
