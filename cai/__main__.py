"""`cai`, and `python -m cai`. What it needs takes a second to load, in which Ctrl-C ends it like later on."""

import os
import signal
import sys
from contextlib import suppress

STOPPED = b"Stopped. What is finished is kept; the same command goes on from there.\n"


def main() -> None:
    """The console script."""
    _open_what_is_closed()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a job that a script put into the background
            signal.signal(number, _stop)
    from cai.cli import main as run

    try:
        run()
    except SystemExit as end:
        if end.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            # All is written. To take a model's libraries down may last longer than whoever has stopped this will wait.
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(int(end.code))
        raise


def _open_what_is_closed() -> None:
    """Put nothing in the place of a standard stream that is closed (`2>&-`), before a file of the run takes it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _stop(number: int, _frame: object) -> None:
    # Not by an exception, which a library that is being loaded may swallow, or answer with a traceback.
    os.write(2, STOPPED)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
