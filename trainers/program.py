"""How a program ends: what the user can mend is one line on the screen and an exit status, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

from utils.failures import plain_errors
from utils.runs.signals import Interrupted

from . import distributed


def exit_with_message(program: Callable[[], object]) -> None:
    """Run a program; what the user can mend ends it with one line and exit status 1, a signal with 128 + its number.

    Of several processes that one speaks which failed first: see `distributed.process_group`.
    """
    try:
        with plain_errors():
            program()
    except distributed.USER_ERRORS as error:
        # an error from a loader's process arrives with that process's traceback; its last line is the message
        message = str(error).strip().splitlines()[-1]
        sys.exit(f"error: {message.removeprefix(f'{type(error).__module__}.{type(error).__qualname__}: ')}")
    except Interrupted as stop:
        if distributed.is_main():
            sys.stderr.write(f"{stop}\n")
        sys.exit(stop.status)
