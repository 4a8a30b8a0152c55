"""Ctrl-C and SIGTERM: what is finished is kept, the process ends soon, and says how to go on."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from cai.texts import visible

T = TypeVar("T")


class _Stopped(BaseException):
    """The process was asked to end, by Ctrl-C or SIGTERM."""

    def __init__(self, number: int) -> None:
        self.code = 128 + number


# What is under way may take this long to end: a shard that is being written, an engine that is being closed. Then the
# process ends all the same, which costs no more than a kill would: nothing that is finished.
GRACE_SECONDS = 8.0


def run_until_stopped(stage: Coroutine[Any, Any, T], out: str, anew: str = "") -> T:
    """Run a stage to its end, or until Ctrl-C or SIGTERM; either way what is finished is kept.

    `anew` is what to say where nothing is kept because the command writes everything in one go.
    """
    first: list[tuple[int, float]] = []
    asked, ended = threading.Event(), threading.Event()

    def sentence() -> str:
        kept = f" Finished rows and calls are kept in {out}." if (Path(out) / "settings.json").exists() else ""
        return anew or visible(f"Stopped.{kept} The same command goes on from here.")

    def end() -> None:
        os.write(2, f"{sentence()}\n".encode(errors="replace"))
        os._exit(128 + first[0][0])

    def see_that_it_ends() -> None:
        asked.wait()
        if not ended.wait(GRACE_SECONDS):
            end()

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def stop(number: int, _frame: object) -> None:
            if not first:
                first.append((number, time.monotonic()))
                asked.set()
                with suppress(RuntimeError):  # all is done already
                    loop.call_soon_threadsafe(task.cancel)
            elif time.monotonic() - first[0][1] > 1.0:
                end()  # asked twice: at once

        _heed(stop)
        try:
            return await stage
        except asyncio.CancelledError:
            if first:
                raise _Stopped(first[0][0]) from None
            raise

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # Begun before it is needed: a signal may come in the middle of a thread's start, which cannot be begun anew there.
    threading.Thread(target=see_that_it_ends, daemon=True).start()
    try:
        return asyncio.run(main())
    except _Stopped as stopped:
        # It is ending already; a second signal must not spoil the exit code.
        before = dict.fromkeys(_SIGNALS, signal.SIG_IGN)
        click.echo(sentence(), err=True)
        sys.exit(stopped.code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ended.set()
        asked.set()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _heed(stop: Callable[[int, object], None]) -> None:
    """Call `stop` on Ctrl-C and SIGTERM, at once even where the event loop is busy."""
    for number in _SIGNALS:
        # A job that a script put into the background ignores Ctrl-C, and goes on doing so.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
