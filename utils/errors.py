"""Errors that the program answers with one clear line."""


class InputError(ValueError):
    """The user's input is wrong; the message names it and the mend."""


class TrainingError(RuntimeError):
    """Training cannot go on, for instance because the loss is not finite; the message says where and why."""


class SystemFailure(TrainingError):
    """The machine failed: memory, files, a process of the run; the message says what to change."""
