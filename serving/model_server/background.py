"""Work that gives way to whoever answers requests."""

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

_NICENESS = 4  # With more, the thread keeps Python's lock while others have both cores.

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def _give_way() -> None:
    """Has the threads of this process go before this one, and before those that it starts.

    There is no way back without privileges. Only Linux tells threads of a process apart so.
    """
    if sys.platform == "linux":
        os.nice(_NICENESS)


def run(work: Callable[Given, Returned], *arguments: Given.args, **named: Given.kwargs) -> Returned:
    """Returns what `work` returns, or raises what it raises, done by a thread that gives way."""
    done: Future[Returned] = Future()

    def do() -> None:
        _give_way()
        try:
            done.set_result(work(*arguments, **named))
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=do, name="background", daemon=True).start()
    return done.result()
