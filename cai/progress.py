"""Progress in the terminal: what `runner.Watch` asks for, as a bar or as lines."""

import sys
import time
from pathlib import Path

from rich import progress
from rich.console import Console
from rich.markup import escape

from cai.journal import Tally
from cai.texts import visible

SECONDS_BETWEEN_LINES = 10.0
SECONDS_FOR_A_SPEED = 2.0  # of less, rows/s would be chance


class Progress:
    """A bar on a terminal, a line every ten seconds elsewhere; both on standard error, with rows/s and time left."""

    def begin(self, stage: str, rows: int, finished: int) -> None:
        self._stage, self._rows, self._finished, self._dropped = stage, rows, finished, 0
        self._begun = self._said = time.monotonic()
        self._new = 0
        self._bar: progress.Progress | None = None
        if finished == rows:
            self.say(f"All {rows} rows are finished; the model is not asked anything.")
            return
        if finished:
            self.say(f"{finished} of {rows} rows are finished; going on with the rest.")
        if sys.stderr.isatty():
            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"), progress.TimeElapsedColumn(), progress.TextColumn("left"),
                progress.TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(stage, total=rows, completed=finished, rate="")
            self._bar.start()
        else:
            self.say(f"{stage}: {rows - finished} rows to do.")

    def asking(self, tally: Tally) -> None:
        self._begun = time.monotonic()  # the speed is that of the work, not of what was slow to start

    def row(self, kept: bool) -> None:
        self._new += 1
        self._dropped += not kept
        seconds = time.monotonic() - self._begun
        rate = f"{self._new / seconds:.2f} rows/s" if seconds >= SECONDS_FOR_A_SPEED else ""
        done = self._finished + self._new
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, rate=_listed(rate, f"{self._dropped} dropped" if self._dropped else "")
            )
        elif time.monotonic() - self._said >= SECONDS_BETWEEN_LINES or done == self._rows:
            self._said = time.monotonic()
            left = (self._rows - done) * seconds / self._new
            done_of = f"{self._stage}: {done} of {self._rows} rows"
            self.say(_listed(done_of, rate, f"{self._dropped} dropped", f"about {left:.0f} s left"))

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def shard(self, path: Path, rows: int, drops: int) -> None:
        return None

    def say(self, sentence: str) -> None:
        if getattr(self, "_bar", None) is not None:
            assert self._bar is not None
            self._bar.console.print(escape(visible(sentence)))
        else:
            print(visible(sentence), file=sys.stderr, flush=True)


def _listed(*words: str) -> str:
    return ", ".join(word for word in words if word)
