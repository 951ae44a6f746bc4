"""The one exception of this package; it imports nothing, so every module here can raise it."""


class ClipError(ValueError):
    """Something is wrong with a checkpoint, a text or a setting; the message names it and the mend."""
