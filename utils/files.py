"""Files as the project reads and writes them: text in UTF-8, JSON, YAML; files and folders whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from .errors import InputError, TrainingError


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte order mark; InputError that names a file in another encoding.

    No encoding is guessed: what another one makes of the bytes may look right and be wrong.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8 (Notepad: "
                         "Save As, Encoding UTF-8), or restore it") from error


def read_json(path: Path, **settings: object) -> object:
    """The content of a JSON file, read with the `settings` of json.loads; InputError that names a damaged one and
    where it breaks."""
    try:
        return json.loads(read_text(path), **settings)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no valid JSON ({error}); restore it") from error


class StrictLoader(yaml.SafeLoader):
    """As yaml.SafeLoader, but a key that is given twice is an error: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise InputError(f"{key!r} stands twice in one place (line {node.start_mark.line + 1})")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """The tree in a YAML file. Raises InputError where it is none, or a key stands twice in it."""
    text = read_text(path)
    try:
        tree = yaml.load(text, StrictLoader) or {}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold KEY: value pairs")
    return tree


def write_whole(path: Path, data: bytes, writer: str = "") -> None:
    """Write to a temporary name in the same folder, flush to the disk, then rename. `writer` tells processes apart that
    may write one file at a time.

    Raises TrainingError where that fails, for instance on a full disk; a file that was at `path` stays as it was.
    """
    partial = path.with_name(f"{path.name}{writer}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):  # nor can it be removed where it could not be made
            partial.unlink()
        raise TrainingError(f"cannot write {path} ({error.strerror or error}); what was there before is kept: make "
                            "room, then go on with --resume auto") from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `target` when the block ends well: `target` is whole or not there.

    Nothing is left of it where the block fails. What another process put at `target` meanwhile stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as temporary:
        folder = Path(temporary) / target.name  # inside, as the temporary folder is closed to other users
        folder.mkdir()
        yield folder
        move_in(folder, target, folder)


def move_in(source: Path, target: Path, last: Path) -> None:
    """Rename `source` to `target`; where that is there already, move into it what it lacks, and `last`, a folder in
    `source` that is moved whole, at the end: who finds it finds the rest too. What is there stays as it is."""
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    if not target.exists():
        try:
            os.replace(source, target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise
    elif source.is_dir() and source != last:
        for path in sorted(source.iterdir(), key=lambda path: path == last or path in last.parents):
            move_in(path, target / path.name, last)
