"""A stage in the actors of a Ray cluster, each with engines of its own.

What the actors do is in `hands.py`, what they are given in `handout.py`, and how Ray is asked for them in `cluster.py`.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import ContextVar
from importlib.metadata import version
from types import TracebackType
from typing import Any, Self

from cai.cluster import Actor, Cluster, Connected, RayHand, address_of_this_node, losses
from cai.engines import Engine, Spec, open_engine
from cai.errors import BadInput, CaiError, EngineGaveUp
from cai.handout import ROOM_SECONDS, Handout, Lost, NoRoom
from cai.hands import Hand, News, Part, packed, probe, unpacked
from cai.inputs import Chunk
from cai.journal import Entry
from cai.runner import Shards, Watch, Work


class Actors:
    """The engines of a stage, each of them in every actor. See `runner.Team` for the contract.

    `engines` are those that this process has found, but not opened: those of the actors must be the same.
    """

    def __init__(
        self, engines: Mapping[Engine, Spec], cluster: Cluster, rows_in_flight: int | None, reuses: bool, watch: Watch
    ) -> None:
        self._engines, self._cluster, self._watch = engines, cluster, watch
        self._rows_in_flight, self._reuses = rows_in_flight, reuses
        self._handout: Handout | None = None

    @property
    def restarts(self) -> int:
        return self._handout.restarts if self._handout is not None else 0

    async def __aenter__(self) -> Self:
        """Raises BadInput without Ray, a cluster, or room in it, EngineGaveUp if the room is taken."""
        keep = _keep.get()
        async with AsyncExitStack() as opened:
            if keep is None:
                self._ray = await opened.enter_async_context(Connected(self._cluster, _Worker))
            elif keep:
                self._ray = keep[0]
            else:
                self._ray = Connected(self._cluster, _Worker)
                await self._ray.__aenter__()
                keep.append(self._ray)
            self._seats = self._ray.make_room(self._loads_models())
            await self._begin()
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)

    async def work_through(self, shards: Shards, chunks: Iterable[Chunk], work: Work) -> None:
        self._stage, self._work = shards.stage, packed(work, list(self._engines))
        self._handout = Handout(shards, chunks, self._seats, self)
        await self._handout.run()

    async def hand(self, seat: int) -> RayHand:
        actor = await self._open(seat)
        given = (self._stage, self._work, tuple(self._engines.values()), self._rows_in_flight, self._reuses)
        return RayHand(actor, lambda: self._ray.end(seat), given)

    def _loads_models(self) -> bool:
        kinds = [(spec.kind, bool(spec.endpoints)) for spec in self._engines.values()]
        return any(kind in ("transformers", "vllm") or (kind == "auto" and not served) for kind, served in kinds)

    async def _begin(self) -> None:
        """Open the engines in all actors that there is room for, at least one."""
        begun = asyncio.get_running_loop().time()
        while True:
            tried = await asyncio.gather(*(self._open(seat) for seat in range(self._seats)), return_exceptions=True)
            for error in tried:
                if isinstance(error, BaseException) and not isinstance(error, Lost | NoRoom):
                    raise error
            for error in tried:
                if isinstance(error, Lost):
                    raise EngineGaveUp(f"An actor ends while it begins ({error}). Its log is in Ray's session folder.")
            waiting = [error for error in tried if isinstance(error, NoRoom)]
            if len(waiting) < len(tried):
                break
            if asyncio.get_running_loop().time() - begun >= ROOM_SECONDS:
                raise EngineGaveUp(
                    f"No actor can be had: {waiting[0]}. See to the Ray cluster; the same command goes on from here."
                )
        begun_now, nodes = len(tried) - len(waiting), self._ray.nodes()
        rest = "; the others begin when there is room" if waiting else ""
        self._watch.say(f"Ray: {begun_now} of {len(tried)} actors have begun, nodes in the cluster: {nodes}{rest}.")

    async def _open(self, seat: int) -> Actor:
        """The actor of a seat with the engines of this stage. Raises Lost, NoRoom, CaiError."""
        actor = await self._ray.actor(seat)
        try:
            with losses():
                said: Any = await actor.handle.open.remote(tuple(self._engines.values()))
        except Lost:
            self._ray.end(seat)
            raise
        if isinstance(said, CaiError):
            raise said
        for engine, (model, versions) in zip(self._engines, said, strict=True):
            mine, theirs = _known(engine.model, engine.versions()), _known(model, versions)
            if mine != theirs:
                expected = f"what this process has, {mine}"
                raise BadInput(actor.name, theirs, expected, "Have the same files and versions on every node.")
        return actor


def _known(model: str, versions: Mapping[str, str]) -> str:
    told = {"cai": version("cai"), "python": sys.version.split()[0], **versions}
    return f"the model {model} with {', '.join(f'{name} {number}' for name, number in sorted(told.items()))}"


_keep: ContextVar[list[Connected] | None] = ContextVar("actors", default=None)


@asynccontextmanager
async def kept_actors() -> AsyncGenerator[None]:
    """Inside, the stages share one Ray and its actors; an engine that the next stage needs too stays loaded."""
    kept: list[Connected] = []
    token = _keep.set(kept)
    try:
        yield
    finally:
        _keep.reset(token)
        for one in kept:
            await one.__aexit__(None, None, None)


class _Worker:
    """The actor: engines that stay open from one stage to the next, and the hand that works with them.

    Errors that end the run are returned, since Ray wraps what is raised.
    """

    def __init__(self, folder: str) -> None:
        with suppress(OSError):  # where paths that were given begin, on a machine that has it too
            os.chdir(folder)
        self._engines: dict[Spec, tuple[Engine, AsyncExitStack]] = {}
        self._opening = asyncio.Lock()  # a stage that is stopped while it begins leaves its opening under way
        self._hand: Hand | None = None

    async def where(self) -> tuple[str, int]:
        return address_of_this_node(), os.getpid()

    async def open(self, specs: Sequence[Spec]) -> list[tuple[str, dict[str, str]]] | CaiError:
        """The models and versions of the engines. Those that are open already stay so, and others are closed."""
        async with self._opening:
            try:
                for spec in [spec for spec in self._engines if spec not in specs]:
                    await self._engines.pop(spec)[1].aclose()
                for spec in specs:
                    if spec not in self._engines:
                        opened = AsyncExitStack()
                        self._engines[spec] = (await opened.enter_async_context(open_engine(spec)), opened)
            except CaiError as error:
                return error
        return [(engine.model, dict(engine.versions())) for engine in self._of(specs)]

    def _of(self, specs: Sequence[Spec]) -> list[Engine]:
        return [self._engines[spec][0] for spec in specs]

    async def news(
        self, stage: str, work: bytes, specs: Sequence[Spec], rows_in_flight: int | None, reuses: bool
    ) -> AsyncGenerator[News]:
        engines = self._of(specs)
        self._hand = Hand(stage, unpacked(work, engines), engines, rows_in_flight, reuses)
        async for news in self._hand.news():
            yield news

    async def give(self, part: Part | None) -> None:
        if self._hand is not None:
            self._hand.give(part)

    async def found(self, number: int, entry: Entry | None) -> None:
        if self._hand is not None:
            self._hand.found(number, entry)

    async def stop(self) -> None:
        if self._hand is not None:
            self._hand.stop()

    async def probe(self) -> CaiError | None:
        try:
            await probe([engine for engine, _ in self._engines.values()])
        except CaiError as error:
            return error
        return None

    async def close(self) -> None:
        for _, opened in self._engines.values():
            await opened.aclose()
        self._engines.clear()
