"""Which of the endpoints that serve one model a call goes to, and which of them are taken out for a while.

A row is put on the live endpoint with the fewest calls under way, and stays there, since its prefix lies in that cache:
until that endpoint is taken out, fails one of its calls, or has turned out far slower than another. An endpoint that is
out is tried by one call after a pause, which doubles each time that the trial fails; when it answers it is back.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from cai.engines.faults import Fault
from cai.ids import digest

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0
# A prefix that has to be read again costs less than one call on a server that needs eight times as long for each.
FAR_SLOWER, NOT_WORTH_MOVING_SECONDS = 8, 0.5
MOST_HOMES = 65_536


@dataclass(slots=True, eq=False)
class Endpoint:
    """One server. `failed` counts its failed tries since its last answer; `until` is when it may be asked again.

    `seconds` is about what a call takes there. `logprobs` is False once it has refused to give any.
    """

    url: str
    under_way: int = 0
    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    out: bool = False
    on_trial: bool = False
    until: float = 0.0
    pause: float = 0.0
    logprobs: bool = True


@dataclass(frozen=True, slots=True)
class Turn:
    """One try of a call at an endpoint. `trial`: the endpoint is out, and this call finds out whether it is back."""

    endpoint: Endpoint
    trial: bool
    begun: float
    answered_before: int

    def others_answered(self) -> bool:
        """Whether the endpoint has answered other calls since this try began."""
        return self.endpoint.answered > self.answered_before


class Endpoints:
    """All endpoints of one model. `deadline_seconds` is what a call may take; it is only told in the log."""

    def __init__(self, urls: Iterable[str], retries: int, deadline_seconds: float) -> None:
        self.all = tuple(Endpoint(url) for url in urls)
        self._retries, self._deadline_seconds = retries, deadline_seconds
        self._homes: OrderedDict[str, Endpoint] = OrderedDict()
        self._changed = asyncio.Event()

    @property
    def live(self) -> int:
        return sum(not one.out for one in self.all)

    @property
    def answered(self) -> int:
        return sum(one.answered for one in self.all)

    def ready(self) -> list[Endpoint]:
        """The live endpoints that may be asked now."""
        now = time.monotonic()
        return [one for one in self.all if not one.out and one.until <= now]

    def soonest(self) -> float:
        """When the next endpoint may be asked, on the monotonic clock."""
        return min(one.until for one in self.all)

    async def take(self, row_id: str, failed_at: Mapping[Endpoint, int]) -> Turn:
        """The endpoint for a row's next try, as soon as one may be asked; `failed_at` counts where this call failed.

        Whoever takes a turn gives it back.
        """
        while (endpoint := self._choose(row_id, failed_at)) is None:
            await self._change()
        endpoint.under_way += 1
        endpoint.on_trial = endpoint.out
        if not endpoint.out:
            self._homes[row_id] = endpoint
            self._homes.move_to_end(row_id)
            if len(self._homes) > MOST_HOMES:
                self._homes.popitem(last=False)
        return Turn(endpoint, endpoint.out, time.monotonic(), endpoint.answered)

    def give_back(self, turn: Turn) -> None:
        turn.endpoint.under_way -= 1
        if turn.trial:
            turn.endpoint.on_trial = False
        self._tell()

    def answers(self, turn: Turn, refused: bool = False) -> None:
        """The endpoint has answered, or with `refused` has said what is wrong with the call: it lives either way."""
        endpoint = turn.endpoint
        # What a dying server still had in its pipe comes before its pause is over, and is no sign of life.
        if endpoint.out and (turn.trial or time.monotonic() >= endpoint.until):
            log.warning("%s answers again.", endpoint.url)
            endpoint.out, endpoint.until, endpoint.pause = False, 0.0, 0.0
        endpoint.failed = 0
        if not refused:
            took = time.monotonic() - turn.begun
            endpoint.seconds = 0.8 * endpoint.seconds + 0.2 * took if endpoint.answered else took
            endpoint.answered += 1
        self._tell()

    def fails(self, turn: Turn, fault: Fault) -> bool:
        """Note a failed try, and take the endpoint out if that is due. Says whether the call may be to blame for it.

        A server that has answered others meanwhile is there. The last live endpoint stays in for what it says itself:
        its calls have nowhere else to go, and wait between their tries anyway.
        """
        endpoint, alone = turn.endpoint, self.live <= 1
        if fault.kind == "busy":
            self.answers(turn, refused=True)
        else:
            endpoint.failed += 1
        if fault.retry_after is not None:
            endpoint.until = max(endpoint.until, time.monotonic() + fault.retry_after)
        match fault.kind:
            case "gone":
                enough = True
            case "away":
                enough = endpoint.failed >= 2 and not turn.others_answered()
            case "silent":
                enough = endpoint.failed >= 2 and not turn.others_answered() and not alone
            case "failing":
                enough = endpoint.failed > self._retries and not alone
            case "busy":
                return False
        if turn.trial or (enough and not endpoint.out):
            self.take_out(endpoint, fault)
        if fault.kind == "away":  # a trial begins with a look: the server was there when this call came
            return turn.trial or turn.others_answered()
        return fault.kind in ("silent", "failing")

    def take_out(self, endpoint: Endpoint, fault: Fault) -> None:
        """Ask it nothing for a while: for as long as it says itself, or for a pause that doubles each time."""
        if not endpoint.out:
            endpoint.out = True
            self._tell_of(endpoint, fault)
        endpoint.pause = min(2 * endpoint.pause, LONGEST_PAUSE_SECONDS) if endpoint.pause else FIRST_PAUSE_SECONDS
        if fault.retry_after is None:
            endpoint.until = time.monotonic() + endpoint.pause
        self._tell()

    def _tell_of(self, endpoint: Endpoint, fault: Fault) -> None:
        if len(self.all) == 1:
            then = f"Its calls wait for it, each up to {self._deadline_seconds:g} s."
            log.warning("%s does not answer (%s). %s", endpoint.url, fault.why, then)
        elif self.live:
            then = f"{self.live} of {len(self.all)} endpoints left; it is tried again now and then."
            log.warning("%s is taken out (%s). %s", endpoint.url, fault.why, then)
        else:
            then = f"No endpoint is left; calls wait for one, each up to {self._deadline_seconds:g} s."
            log.warning("%s is taken out (%s). %s", endpoint.url, fault.why, then)

    def _choose(self, row_id: str, failed_at: Mapping[Endpoint, int]) -> Endpoint | None:
        now, ready = time.monotonic(), self.ready()
        for one in self.all:
            # A call that has failed there does not try it again while there is another place for it.
            if one.out and not one.on_trial and one.until <= now and not (ready and one in failed_at):
                return one
        fewest = min((failed_at.get(one, 0) for one in ready), default=0)
        ready = [one for one in ready if failed_at.get(one, 0) == fewest]
        home = self._homes.get(row_id)
        if home in ready:
            faster = [one for one in ready if _far_slower(home, one)]
            if not faster:
                return home
            ready = faster
        return min(ready, key=lambda one: (one.under_way, digest([row_id, one.url])), default=None)

    async def _change(self) -> None:
        """Wait until an endpoint may be asked, or something else has happened to one."""
        now = time.monotonic()
        soonest = min((one.until for one in self.all if one.until > now), default=None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if soonest is None else soonest - now):
                await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _far_slower(one: Endpoint, other: Endpoint) -> bool:
    known = min(one.answered, other.answered) >= 4
    return known and one.seconds > NOT_WORTH_MOVING_SECONDS + FAR_SLOWER * other.seconds
