"""Errors that the program answers with one clear line."""

from pathlib import Path


class InputError(ValueError):
    """The user's input is wrong; the message names it and the mend."""


class TrainingError(RuntimeError):
    """Training cannot go on, for instance because the loss is not finite; the message says where and why."""


class SystemFailure(TrainingError):
    """The machine failed: memory, files, a process of the run; the message says what to change."""


def words(error: Exception, path: Path) -> str:
    """An error's own words in one line, without the path, which the message around them tells already."""
    said = isinstance(error, OSError) and error.strerror or str(error)
    return " ".join(said.replace(repr(str(path)), "").replace(str(path), "").split()).strip(" :")
