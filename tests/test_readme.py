"""The documents hold what the code does: every command parses, every key, flag, data set, message and file is real."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import sys

import numpy as np
import pytest

from tests.test_launchers import LAUNCHERS, handed_over
from utils.config import CHOICES, PROJECT, default_config, flatten, load_config
from utils.datasets.classification import DEFINITIONS
from utils.datasets.table import READERS
from utils.files import read_yaml
from utils.flags import LISTS, REFUSED, SWITCHES, VALUES, build_parser, parse_flags
from utils.runs.identity import HARMLESS

sys.path.insert(0, str(PROJECT / "scripts"))

import benchmark
import compare

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
FOLDERS = ("clip", "configs", "scripts", "tests", "trainers", "utils")
DOCUMENTS = [path.relative_to(PROJECT).as_posix() for path in (
    *sorted(PROJECT.glob("*.md")), *(path for folder in FOLDERS for path in sorted((PROJECT / folder).rglob("*.md"))))]
KEYS = dict(flatten(default_config()))
BY_TEXT = ("scripts/generate_descriptions.py", "scripts/fetch_vitb16_image_tower.py", "scripts/gpu_check.py",
           "utils/results.py")
OTHERS_FLAGS = {"--help", "--shm-size", "--logdir"}  # of docker, of TensorBoard


def text(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def code_blocks(document: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document, flags=re.DOTALL | re.MULTILINE)
    return [content for its_language, content in found if its_language == language]


def without_code(document: str) -> str:
    return re.sub(r"^```.*?^```$", "", document, flags=re.DOTALL | re.MULTILINE)


def section(document: str, title: str) -> str:
    """What stands below the heading of this title, up to the next one of its level."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", document, flags=re.DOTALL | re.MULTILINE)
    assert found, title
    return found[2]


def rows(document: str) -> list[list[str]]:
    """The cells of all rows of its tables."""
    lines = [line for line in document.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# --- commands ---------------------------------------------------------------------------------------------------------

def commands(document: str) -> list[list[str]]:
    """The words of every command in its blocks of code and between backticks, without environment and comments."""
    lines = "\n".join(code_blocks(document)).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`((?:python|bash|scripts/\w+\.sh) [^`]+)`", without_code(document))
    found = []
    for line in lines:
        line = re.sub(r"^(for|done).*", "", line).replace("$seed", "1").replace("$targets", "votes")
        words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
        found += [words] if words else []
    return found


def check_run(arguments: list[str]) -> None:
    """What LaFTer.py refuses before it looks at data raises InputError."""
    if "--help" in arguments:
        return
    flags = parse_flags(arguments)
    if not (flags.list_datasets or flags.model_dir):
        load_config(flags.dataset_config_file, flags.config_file, flags.values, flags.options)


def check(words: list[str]) -> None:
    words = words[words[0] in ("bash", "python"):]
    if words[:2] == ["-m", "pip"]:
        return
    if words[:2] == ["-m", "utils.results"]:
        words = ["utils/results.py", *words[2:]]
    program, arguments = words[0], words[1:]
    name = program.removeprefix("scripts/").removesuffix(".sh")
    assert (PROJECT / program).is_file(), program
    if program == "LaFTer.py":
        check_run(arguments)
    elif name in (*LAUNCHERS, "LaFTer_MultiGPU"):
        check_run([*handed_over(PROJECT / program)[:-1], *arguments])
    elif program == "scripts/compare.py":
        args, rest = compare.build_parser().parse_known_args(arguments)
        assert compare.find_experiment(args.experiment).is_file()
        parse_flags(rest)
    elif program == "scripts/benchmark.py":
        benchmark.parse(arguments)
    elif program == "scripts/linear_probe.py":
        assert arguments[0] == "--targets"
        check_run(arguments[2:])
    elif program in BY_TEXT:
        assert all(f'"{word}"' in text(program) for word in arguments if word.startswith("--"))
    else:
        assert name in ("demo", "test") and not arguments, program


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_is_accepted(name):
    for words in commands(text(name)):
        check(words)


def test_commands_are_found_and_wrong_ones_refused():
    assert len(commands(text(ENGLISH))) > 10
    for wrong in ("python LaFTer.py --dataset-config-file emotion7", "python LaFTer.py --no-such-flag",
                  "bash scripts/LaFTer.sh demo INPUT.SIZ 3", "python scripts/compare.py nothing",
                  "python scripts/benchmark.py --slow", "bash scripts/no_such.sh", "python -m utils.results x --chart"):
        with pytest.raises((ValueError, OSError, AssertionError, SystemExit)):
            check(*commands(f"`{wrong}`"))


def test_text_embeddings_are_made_as_described(tmp_path, monkeypatch):
    (snippet,) = code_blocks(text("configs/datasets/README.md"), "python")
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace("ViT-B/16", (PROJECT / "configs/demo/demo_clip.pt").as_posix()), {})
    made = np.load("texts.npz", allow_pickle=False)
    assert made["features"].shape == (3, 128) and np.allclose(np.linalg.norm(made["features"], axis=1), 1, atol=1e-5)
    assert made["classnames"].tolist() == ["beach", "city", "forest"] and 1 < made["logit_scale"] <= 101


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_even(name):
    for table in re.findall(r"(?:^\|.*\n)+", without_code(text(name)), flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table.splitlines()[0]


# --- names ------------------------------------------------------------------------------------------------------------

def slugs(document: str) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_code(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_lead_somewhere(name):
    document = text(name)
    for path, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", document):
        if not path.startswith("http"):
            target = (PROJECT / name).parent / path if path else PROJECT / name
            assert target.exists(), path
            assert not anchor or anchor in slugs(target.read_text(encoding="utf-8")), anchor
    for path in re.findall(r"`((?:configs|clip|trainers|utils|scripts|tests)[/\\][\w./\\-]+)`", document):
        assert "NAME" in path or (PROJECT / path.replace("\\", "/")).exists(), path


@pytest.mark.parametrize("name", DOCUMENTS)
def test_keys_and_flags_are_real(name):
    document = text(name)
    roots = "|".join({key.split(".")[0] for key in KEYS if "." in key})
    for key in re.findall(rf"\b((?:{roots})(?:\.[A-Z][A-Z0-9_]*)+)", document):
        assert key in KEYS, key
    known = {option for action in build_parser()._actions for option in action.option_strings} | OTHERS_FLAGS
    programs = [*(PROJECT / "scripts").glob("*.py"), PROJECT / "utils/results.py"]
    known |= set(re.findall(r'"(--[\w-]+)"', "".join(path.read_text(encoding="utf-8") for path in programs)))
    for flag in re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", document):
        assert flag in known, flag


def test_every_key_is_described_with_its_default():
    described = {}
    for cells in rows(section(text("configs/README.md"), "Keys")):
        if cells[0] != "key":
            (key,) = quoted(cells[0])
            assert key not in described and len(cells) == 3 and cells[2], key
            described[key] = cells
    assert described.keys() == KEYS.keys()
    for key, (name, default, what) in described.items():
        value = ast.literal_eval(default.strip("`"))
        assert value == KEYS[key] and type(value) is type(KEYS[key]), key
        assert ("°" in name) == (key in HARMLESS), key
        missing = [choice for choice in CHOICES.get(key, ()) if f"`{choice}`" not in name + default + what]
        assert not [choice for choice in missing if repr(choice) != repr(KEYS[key])], key


def test_every_flag_is_described_with_what_it_sets():
    described = {}
    for what, _, sets in rows(section(text("configs/README.md"), "Flags"))[1:]:
        for flag in re.findall(r"--[\w-]+", what):
            described[flag] = sets
    known = {option for action in build_parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert described.keys() | {"--load-epoch"} == known
    for flag, (key, *_) in {**VALUES, **LISTS}.items():
        assert quoted(described[flag]) == [key]
    for flag, (settings, _) in SWITCHES.items():
        assert quoted(described[flag]) == [f"{key} {value}" for key, value in settings.items()]
    assert not any(described[flag] for flag in REFUSED)


def test_every_data_set_is_described():
    table = rows(section(text("configs/datasets/README.md"), "Layouts"))[1:]
    assert sorted(quoted(cells[0])[0] for cells in table) == sorted(READERS)
    for name, described, _ in table:
        (key,) = quoted(name)
        assert ("↓" in name) == bool(key in DEFINITIONS and DEFINITIONS[key].torchvision), key
        assert (described == "D") == bool(load_config(key).DATASET.DESCRIPTIONS), key
    for name in (ENGLISH, CHINESE):
        assert str(len(READERS)) in text(name) and all(f"`{key}`" in text(name) for key in READERS)


@pytest.mark.parametrize("name", [ENGLISH, CHINESE])
def test_launchers_set_what_is_told(name):
    told = {quoted(cells[0])[0]: cells[2] for cells in rows(text(name)) if quoted(cells[0])[:1] in
            [[launcher] for launcher in (*LAUNCHERS, "LaFTer_MultiGPU")]}
    for launcher, cell in told.items():
        words = handed_over(PROJECT / "scripts" / f"{launcher}.sh")[:-2]
        assert " ".join(quoted(cell)) == " ".join(words).removeprefix("--resume auto").strip(), launcher
    assert told.keys() == {*LAUNCHERS, "LaFTer_MultiGPU"}


def test_every_experiment_is_described():
    table = rows(section(text("configs/experiments/README.md"), "Run a grid"))[1:]
    assert sorted(quoted(cells[0])[0] for cells in table) == sorted(
        path.stem for path in (PROJECT / "configs/experiments").glob("*.yaml"))
    for name, _, runs in table:
        tree = read_yaml(PROJECT / "configs/experiments" / f"{quoted(name)[0]}.yaml")
        sizes = [len(tree["seeds"]), *(len(axis) for axis in tree["axes"].values())]
        assert int(runs) == np.prod(sizes), name


def test_speed_is_that_of_the_records():
    steps = [(step, "") for step in json.loads(text("configs/benchmarks/amd-epyc-2026-11-24.json"))["steps"]]  # in fp32
    steps += [(step, f", {step['precision']}")
              for step in json.loads(text("configs/benchmarks/intel-xeon-amx-2026-11-28.json"))["steps"]]
    told = [cells for cells in rows(text("configs/benchmarks/README.md")) if re.match("(MultiLayer)?LaFTer,", cells[0])]
    assert told == [[f"{step['trainer']}, {step['mode']}{precision}", f"{step['seconds']:.2f}",
                     f"{step['images_per_s']:.1f}", f"{step['floor_fraction']:.2f}",
                     f"{step['times_reference']:.2f}", f"{step['peak_gb']:.1f}"] for step, precision in steps]


# --- messages ---------------------------------------------------------------------------------------------------------

def literals(tree: ast.AST) -> list[str]:
    """The texts in a program, with … where it puts something in; of sums of texts, the whole."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        return [re.sub(r"%[\d.]*[sdrgfi]", "…", tree.value)]
    if isinstance(tree, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "…" for part in tree.values)]
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add):
        sides = [literals(side)[:1] or ["…"] for side in (tree.left, tree.right)]
        return ["".join(itertools.chain(*sides))]
    return [found for child in ast.iter_child_nodes(tree) for found in literals(child)]


def test_messages_are_those_of_the_program():
    said = "\n".join(found for folder in ("clip", "trainers", "utils") for path in (PROJECT / folder).rglob("*.py")
                     for found in literals(ast.parse(path.read_text(encoding="utf-8"))))
    said += "\n".join(literals(ast.parse(text("LaFTer.py"))))
    told = [quoted(cells[0])[0] for cells in rows(section(text(ENGLISH), "Troubleshooting"))[1:]]
    assert len(told) == 10
    for part in (part for message in told for part in message.split("…")):
        assert part in said, part


# --- the Chinese document ---------------------------------------------------------------------------------------------

def test_chinese_is_in_step():
    english, chinese = text(ENGLISH), text(CHINESE)
    blocks = [[commands(f"```\n{block}```\n") for block in code_blocks(document)] for document in (english, chinese)]
    assert blocks[0] == blocks[1]
    headings = [len(re.findall("^## ", document, flags=re.MULTILINE)) for document in (english, chinese)]
    assert headings[0] == headings[1]
    figures = [re.findall(r"\d*\.\d+", without_code(document)) for document in (english, chinese)]
    assert figures[0] == figures[1] and len(figures[0]) > 20
    messages = [[quoted(cells[0])[0] for cells in rows(document) if "…" in cells[0]] for document in (english, chinese)]
    assert messages[0] == messages[1]


def test_chinese_has_its_own_punctuation():
    prose = re.sub(r"`[^`]*`|\]\([^)]*\)", "", without_code(text(CHINESE)))
    assert not re.findall(r"[\u4e00-\u9fff][,;:?!()]|[,;:?!()][\u4e00-\u9fff]", prose)
