"""`cai`, and `python -m cai`. What it needs takes a second to load, in which Ctrl-C ends it like later on."""

import os
import signal

STOPPED = b"Stopped. What is finished is kept; the same command goes on from there.\n"


def main() -> None:
    """The console script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a job that a script put into the background
            signal.signal(number, _stop)
    from cai.cli import main as run

    run()


def _stop(number: int, _frame: object) -> None:
    # Not by an exception, which a library that is being loaded may swallow, or answer with a traceback.
    os.write(2, STOPPED)
    os._exit(128 + number)


if __name__ == "__main__":
    main()
