"""Experiments: a YAML that names a grid of runs, and the runs, each with a folder of its own."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from ..config import load_config
from ..errors import InputError
from ..files import read_yaml
from ..flags import parse_flags
from .identity import identify
from .record import Run, dataset_name, run_folder

KEYS = ("output", "options", "seeds", "axes")
OWN = ("SEED", "EXP_NAME", "OUTPUT_DIR", "RESUME")  # what the experiment itself sets for each run
NAME = re.compile(r"\w[\w.+=,@-]*")  # what may be part of a folder's name on every system


@dataclass(frozen=True)
class Cell:
    """One run of the grid: the arguments for LaFTer.py, the configuration that they give, and the run's folder."""

    name: str  # its folder below the experiment's output, with forward slashes
    arguments: tuple[str, ...]
    cfg: CfgNode
    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / "final.json").exists()

    @property
    def begun(self) -> bool:
        return not self.finished and (self.folder / "metrics.jsonl").exists()

    @property
    def log(self) -> Path:
        """The file, beside the run's folder, for what it writes to the terminal."""
        return self.folder.with_name(self.folder.name + ".log")

    def last_words(self) -> str:
        """The last line of its log, and where that is."""
        return f"{self.log.read_text(encoding='utf-8', errors='replace').strip().splitlines()[-1]} (see {self.log})"


def read_experiment(path: Path, output: str = "", extra: Sequence[str] = ()) -> list[Cell]:
    """All runs of an experiment, seed by seed, each checked as LaFTer.py will check it.

    `output` takes the place of the YAML's; `extra` are arguments that come last in every run. Raises InputError for
    an unknown key, names that cannot be folders, options that LaFTer.py refuses, two runs with one folder, and a
    folder that holds a run with other settings; FileNotFoundError.
    """
    tree = _read_tree(path)
    output = output or tree["output"]
    cells: dict[Path, Cell] = {}
    for seed in tree["seeds"]:
        for levels in itertools.product(*(axis.items() for axis in tree["axes"].values())):
            names = [name for name, _ in levels]
            options = [*tree["options"], *(option for _, level in levels for option in level), *extra]
            try:
                cell = _build_cell(names, options, seed, output)
            except (InputError, FileNotFoundError) as error:
                raise type(error)(f"{path}, {', '.join(names) or 'options'}: {error}") from error
            if cell.folder in cells:
                raise InputError(f"{path}: two runs share the folder {cell.folder}; give their levels different names")
            cells[cell.folder] = cell
    return list(cells.values())


def _build_cell(names: Sequence[str], options: Sequence[str], seed: int, output: str) -> Cell:
    flags = parse_flags(list(options))
    clash = [key for key in OWN if key in flags.values or key in flags.options[::2]]
    if clash:
        raise InputError(f"{clash[0]} cannot be an option: the experiment sets the seed, the folder and the resuming "
                         "of its runs")
    if flags.eval_only or flags.predict or flags.list_datasets:
        raise InputError("--eval-only, --predict and --list cannot be options: an experiment's runs are trained")
    plain = load_config(flags.dataset_config_file, flags.config_file, flags.values, flags.options)
    dataset = dataset_name(plain)
    told = run_folder(plain, dataset).parts[-4:-1]  # a level named as one of these folders need not be told again
    experiment = "-".join([*(name for name in names if name not in told), f"seed{seed}"])
    arguments = [*options, "--output-dir", output, "--exp-name", experiment, "--seed", str(seed), "--resume", "auto"]
    flags = parse_flags(arguments)
    cfg = load_config(flags.dataset_config_file, flags.config_file, flags.values, flags.options)
    folder = run_folder(cfg, dataset)
    if folder.exists():
        Run(folder, resume=True).check(identify(cfg))
    return Cell(folder.relative_to(output).as_posix(), tuple(arguments), cfg, folder)


def _read_tree(path: Path) -> dict:
    """The YAML's content, all of KEYS in it: `options` as a list, `axes` as {axis: {level: options as a list}}."""
    tree = read_yaml(path)
    if stray := sorted(map(str, set(tree) - set(KEYS))):
        raise InputError(f"{path}: unknown key {stray[0]}; an experiment has {', '.join(KEYS)}")
    if not isinstance(tree.get("output"), str) or not tree["output"]:
        raise InputError(f"{path}: 'output' must name the folder of the experiment's runs")
    seeds = tree.get("seeds", [1])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise InputError(f"{path}: 'seeds' must be a list of integers, not {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise InputError(f"{path}: a seed stands twice in {seeds}")
    axes = tree.get("axes") or {}
    if not isinstance(axes, dict) or not all(isinstance(levels, dict) and levels for levels in axes.values()):
        raise InputError(f"{path}: 'axes' must hold, for each axis, its levels as NAME: OPTIONS")
    for level in (level for levels in axes.values() for level in levels):
        if not isinstance(level, str) or not NAME.fullmatch(level) or level.endswith("."):
            raise InputError(f"{path}: {level!r} cannot be a level's name; take letters, digits and . + = , @ - _ "
                             "alone, and put numbers and words such as 'on' in quotes")
    return {"output": tree["output"], "seeds": seeds, "options": _words(tree.get("options"), f"{path}: 'options'"),
            "axes": {axis: {name: _words(options, f"{path}: {axis}, {name}") for name, options in levels.items()}
                     for axis, levels in axes.items()}}


def _words(options: object, where: str) -> list[str]:
    """Options as a list: one text is divided as a shell does, but a backslash stays what it is, as in C:\\data."""
    if options is None:
        return []
    if isinstance(options, list):
        return [str(option) for option in options]
    if not isinstance(options, str):
        raise InputError(f"{where} must be options of LaFTer.py, as one text or a list, not {options!r}")
    lexer = shlex.shlex(options, posix=True)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError as error:
        raise InputError(f"{where}: {options!r} has an open quote") from error
