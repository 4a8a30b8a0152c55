"""The calls of one row or pair: asks them in its name, and adds up their tokens."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from cai.engines import Completion, Engine, Request, Sampling
from cai.errors import RequestRefused, RowDropped
from cai.ids import derived_seed
from cai.rows import Message

Ask = Callable[[Engine, Request], Awaitable[tuple[str, Completion]]]
FORCED = Sampling(max_tokens=1, temperature=0.0)

T = TypeVar("T")


@dataclass(slots=True)
class Calls:
    """Asks the calls of `row_id`; `seed` is the run's, `position` the row's place in the input.

    `unit` names what the seeds are derived from: the row, or the pair.
    """

    row_id: str
    position: int
    ask: Ask
    seed: int
    unit: str
    finished: list[Completion] = field(default_factory=list[Completion])

    async def __call__(
        self,
        engine: Engine,
        purpose: str,
        messages: tuple[Message, ...],
        sampling: Sampling,
        at: tuple[int, str] = (0, ""),
        choices: tuple[str, ...] | None = None,
    ) -> tuple[str, Completion]:
        """The call's key and its completion. Raises RowDropped if the engine refuses it."""
        seed = 0 if choices else derived_seed(self.seed, self.unit, at[0], purpose, at[1])
        request = Request(purpose, self.row_id, messages, sampling, seed, choices, self.position)
        try:
            key, completion = await self.ask(engine, request)
        except RequestRefused as error:
            raise RowDropped("refused_by_engine", f"{purpose}: {error}") from error
        self.finished.append(completion)
        return key, completion

    def totals(self) -> dict[str, int]:
        """The tokens of all calls, and how many turns the most shortened of them did without."""
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        tokens = {name: sum(getattr(completion, name) for completion in self.finished) for name in names}
        return {**tokens, "left_out_turns": max((one.left_out for one in self.finished), default=0)}


async def together(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All of them, or the first error once the others have ended: a row that is over has no call under way."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
