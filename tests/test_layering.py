"""Imports run one way, LaFTer.py → trainers → clip, utils; and the habits that hid earlier faults are out."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"clip", "trainers", "utils", "LaFTer", "scripts", "tests"}
MAY_IMPORT = {"clip": set(), "utils": set(), "trainers": {"clip", "utils"}, "LaFTer.py": {"clip", "trainers", "utils"}}
# within utils: the folders that each may import; the files beside them import none but these
FOLDERS = {"data": set(), "demo": set(), "datasets": {"data", "demo"}, "runs": {"data", "datasets"},
           "report": {"data", "datasets", "runs"}}
FILES = {"metrics.py": {"data"}, "results.py": {"runs", "report"}}
LIBRARY = sorted(path for folder in ("clip", "trainers", "utils") for path in (ROOT / folder).rglob("*.py"))
LIBRARY.append(ROOT / "LaFTer.py")
EVERYTHING = [*LIBRARY, *sorted(path for folder in ("scripts", "tests") for path in (ROOT / folder).rglob("*.py"))]
CLIP_MAY_IMPORT = {"torch", "torchvision", "ftfy", "regex", "numpy", "PIL", "tqdm", "safetensors"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, anywhere in it; relative imports by the package they reach."""
    return {module[0] for module in modules(path)}


def modules(path: Path) -> set[tuple[str, ...]]:
    """The same as whole dotted names, each divided at its dots."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[:-1]
            base = package[: len(package) - node.level + 1] if node.level else ()
            target = [*base, *(node.module.split(".") if node.module else [])]
            found |= {(*target, alias.name) for alias in node.names}
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            found |= {tuple(arg.value.split(".")) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_the_layers_are_all_there():
    assert {name(path).split("/")[0] for path in LIBRARY} == set(MAY_IMPORT)
    assert len(LIBRARY) > 20


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_imports_run_one_way(path):
    layer = name(path).split("/")[0]
    assert imported(path) & OURS <= MAY_IMPORT[layer] | {layer}


@pytest.mark.parametrize("path", sorted((ROOT / "utils").rglob("*.py")), ids=name)
def test_imports_within_utils_run_one_way(path):
    _, place, *inside = name(path).split("/")
    found = {module[1] for module in modules(path) if module[0] == "utils" and module[1] in FOLDERS}
    assert found <= (FOLDERS[place] | {place} if inside else FILES.get(place, set()))


@pytest.mark.parametrize("path", sorted((ROOT / "clip").rglob("*.py")), ids=name)
def test_clip_needs_no_more_than_it_says(path):
    assert imported(path) - set(sys.stdlib_module_names) - {"clip"} <= CLIP_MAY_IMPORT


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_no_habits_that_hide_faults(path):
    for node in ast.walk(tree(path)):
        where = f"{name(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            assert called(node) not in ("print", "hasattr", "cuda"), f"{where}: {called(node)}()"
        elif isinstance(node, ast.ExceptHandler):
            types = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            caught = {ast.unparse(kind) if kind else "everything" for kind in types}
            assert not caught & {"everything", "Exception", "BaseException"}, f"{where}: except {caught}"


@pytest.mark.parametrize("path", EVERYTHING, ids=name)
def test_progress_bars_are_for_terminals(path):
    """tqdm with disable=None, or as `bar_settings` says: elsewhere it would fill a log file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and called(node) in ("tqdm", "trange"):
            assert any(word.arg == "disable" or (word.arg is None and called(word.value) == "bar_settings")
                       for word in node.keywords), f"{name(path)}:{node.lineno}"


@pytest.mark.parametrize("path", EVERYTHING, ids=name)
def test_no_wildcards_and_no_long_files(path):
    assert not any(alias.name == "*" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)
                   for alias in node.names)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 320


def test_the_helpers_of_this_file_see_what_they_look_for(tmp_path, monkeypatch):
    """Against a file that breaks the rules, so that the tests above can fail."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "utils" / "deep").mkdir(parents=True)
    path = tmp_path / "utils" / "deep" / "bad.py"
    path.write_text("import trainers.training as e\nfrom clip.model import *\nfrom ..errors import X\nfrom . import y\n"
                    "def f():\n    import LaFTer\n    importlib.import_module('scripts.x')\n", encoding="utf-8")
    assert imported(path) == {"trainers", "clip", "utils", "LaFTer", "scripts"}
    (tmp_path / "utils" / "data").mkdir()
    upwards = tmp_path / "utils" / "data" / "bad.py"
    upwards.write_text("from ..runs.record import Run\n", encoding="utf-8")
    with pytest.raises(AssertionError):
        test_imports_within_utils_run_one_way(upwards)
    for test in (test_imports_run_one_way, test_no_wildcards_and_no_long_files):
        with pytest.raises(AssertionError):
            test(path)
    for habit in ("print(1)", "hasattr(a, 'b')", "x.cuda()", "try:\n    a\nexcept:\n    b",
                  "try:\n    a\nexcept (ValueError, Exception):\n    b"):
        path.write_text(habit + "\n", encoding="utf-8")
        with pytest.raises(AssertionError):
            test_no_habits_that_hide_faults(path)
    path.write_text("try:\n    import torch\nexcept ImportError as error:\n    raise ValueError from error\n"
                    "available = torch.cuda.is_available()\n", encoding="utf-8")
    test_no_habits_that_hide_faults(path)
    test_imports_run_one_way(path)
