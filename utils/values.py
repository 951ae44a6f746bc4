"""What a user writes for a key, on the command line or in a YAML, as a value of the key's type."""

from __future__ import annotations

import ast
import difflib
import os
import re
from collections.abc import Collection, Sequence

import yaml
from yacs.config import CfgNode

from .errors import InputError


def parse_options(options: Sequence[str], texts: Collection[str]) -> dict[str, object]:
    """Trailing KEY VALUE options: values as YAML reads them, those of the keys `texts` as they stand.

    Raises InputError for a key without a value, and for a list that the shell has divided.
    """
    for place, value in enumerate(options[1::2]):
        start, end = value.lstrip("\"'"), value.rstrip("\"'")
        if end.endswith(",") or (start.startswith(("[", "(")) and not end.endswith(("]", ")"))):
            words = options[2 * place + 1:]
            last = next((number for number, word in enumerate(words) if not word.endswith(",")), len(words) - 1)
            raise InputError(f"quote the list, which the shell divides at its spaces: {options[2 * place]} "
                             f"\"{' '.join(words[:last + 1])}\"")
    if len(options) % 2:
        raise InputError(f"trailing options come as KEY VALUE pairs, but {options[-1]!r} stands alone; a value with "
                         "spaces needs quotes")
    return {key: value if key in texts else _parse(value) for key, value in zip(options[::2], options[1::2])}


def _parse(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # such as "a photo: {}": a string as it stands


def similar_keys(key: str, known: Collection[str]) -> list[str]:
    """The keys that may be meant: near ones, else those of its section, else the sections."""
    section = key.split(".")[0]
    return (difflib.get_close_matches(key, known, n=3) or [name for name in known if name.split(".")[0] == section]
            or sorted({name.split(".")[0] + ".*" * ("." in name) for name in known}))


def divide_names(text: str) -> list[str] | str:
    """The names in a text with commas between them, Chinese ones too; one in brackets stays whole, for `coerce`."""
    if text.startswith(("[", "(")):
        return text
    return [name.strip() for name in re.split("[,\uff0c\u3001]", text) if name.strip()]


def expand_home(value: str | list[str]) -> str | list[str]:
    """A path, or each of a list, with the user's home in the place of a leading ~."""
    return os.path.expanduser(value) if isinstance(value, str) else [os.path.expanduser(path) for path in value]


def coerce(key: str, value: object, old: object, source: str) -> object:
    """The value in the type of the default `old`: an int serves as a float, one name as a list of it.

    Raises InputError, which names the `source`, for one that has none.
    """
    if isinstance(value, str) and not isinstance(old, str):
        value = _decode(value)
    if isinstance(value, tuple):
        value = list(value)
    if old is None:
        return value
    if isinstance(old, str) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # a name such as --exp-name 3
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(old, list) and isinstance(value, (str, int)):
        return [value]
    if type(value) is not type(old):
        raise InputError(f"{key} must be a {type(old).__name__}, not {value!r} ({source})")
    return value


def _decode(text: str) -> object:
    """Python literals that YAML leaves as strings: 5e-4, (224, 224)."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def with_value(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """A frozen copy of a configuration in which a key has this value, of its own type."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg
