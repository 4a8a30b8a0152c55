"""A Ray cluster: started or joined, asked for actors, and left. The only file that imports Ray.

A Ray that was started here ends with the command; one that was joined by its address is left alone. The servers' key is
never handed to Ray: an actor finds it in the environment of its node, which for a Ray that was started here is this
process's.
"""

import asyncio
import importlib
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self, TypeVar

from cai.errors import BadInput, CaiError, EngineGaveUp, brief
from cai.handout import Lost, NoRoom
from cai.hands import News, Part
from cai.journal import Entry

T = TypeVar("T")

# How long one look for room takes, a connection to a cluster, and the end of the engines in the actors.
LOOK_SECONDS, CONNECT_SECONDS, CLOSE_SECONDS = 5.0, 5.0, 2.0
# Parts and news are a few megabytes at most; Ray would take a third of the memory.
OBJECT_STORE_BYTES = 256 << 20
# Ray's doors listen on the network. Who comes in has to know this; it is written to no file.
_TOKEN = secrets.token_hex(32)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which Ray cluster, how many actors, and how much of it each of them takes. None leaves it to the cluster."""

    address: str | None
    actors: int | None
    gpus: float | None
    cpus: float


@dataclass(slots=True)
class Actor:
    """An actor that runs; its name says where."""

    handle: Any
    name: str


class Connected:
    """A Ray that was started or joined, and the actors of this process, from one stage to the next."""

    def __init__(self, cluster: Cluster, worker: type) -> None:
        self._cluster, self._worker = cluster, worker
        # What Ray starts ends with the thread that started it, so that has to be one that stays.
        self._thread = ThreadPoolExecutor(1, "ray")
        self._size = (0.0, 0.0)
        self._handles: dict[int, Any] = {}
        self._places: dict[int, asyncio.Future[tuple[str, int]]] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._apart(self._connect)
        except CaiError:
            self._thread.shutdown(wait=False)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        handles = list(self._handles.values())
        closed = [asyncio.ensure_future(handle.close.remote()) for handle in handles]
        if closed:
            await asyncio.wait(closed, timeout=CLOSE_SECONDS)
        for one in closed:
            one.cancel()
        for seat in list(self._handles):
            self.end(seat)
        if not self._is_anothers:
            await self._apart(self._ray.shutdown)
            for name in self._environment:
                os.environ.pop(name, None)
        self._thread.shutdown(wait=False)

    async def _apart(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _connect(self) -> None:
        if find_spec("ray") is None:
            raise BadInput("--on ray", "no Ray in this environment", "the extra 'ray'", "pip install 'cai[ray]'.")
        address = self._cluster.address
        before = set(os.environ)
        # Before Ray is imported. Whoever wants its statistics or messages sets these otherwise.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # it would print what it hears to standard output
        # Read when Ray is imported: its own handler would answer a SIGTERM with a stack and abort. Actors keep it.
        os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
        ray: Any = importlib.import_module("ray")
        if "RAY_DISABLE_FAILURE_SIGNAL_HANDLER" not in before:
            del os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"]
        self._ray, self._environment = ray, set[str]()
        self._is_anothers: bool = ray.is_initialized()
        if self._is_anothers:
            return
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is None:
                os.environ.setdefault("RAY_AUTH_TOKEN", _TOKEN)
                ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
            else:
                _look(address)
                ray.init(address, **quiet)
        except Exception as error:  # Ray raises of every kind here, and where it is too slow a plain Exception
            ray.shutdown()
            if address is None:
                raise EngineGaveUp(
                    f"Ray does not start here ({brief(error)}). Its logs are in /tmp/ray; the same command tries again."
                ) from error
            found = f"no cluster that can be joined ({brief(error)})"
            expected = "HOST:PORT of a Ray cluster of the same versions, or auto"
            remedy = "Check the address; this machine has to be one of its nodes."
            raise BadInput(f"--ray-address {address}", found, expected, remedy) from error
        finally:
            self._environment = {name for name in set(os.environ) - before if name.startswith("RAY_AUTH")}

    def nodes(self) -> int:
        return sum(node["Alive"] for node in self._ray.nodes())

    def make_room(self, loads_models: bool) -> int:
        """How many seats there are. Raises BadInput if the cluster could never hold so many actors."""
        alive: list[dict[str, float]] = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        any_gpu = any(node.get("GPU", 0) for node in alive)
        gpus, cpus = self._cluster.gpus, self._cluster.cpus
        gpus = float(loads_models and any_gpu) if gpus is None else gpus
        if (gpus, cpus) != self._size:
            for seat in list(self._handles):
                self.end(seat)
        self._size = (gpus, cpus)
        room = sum(_fits(node, gpus, cpus) for node in alive)
        by_gpus = sum(_fits(node, gpus, 0) for node in alive) if gpus else len(alive)
        seats = self._cluster.actors or max(1, min(by_gpus, room))
        if seats > room:
            whole = ", ".join(f"{sum(node.get(kind, 0) for node in alive):g} {kind}s" for kind in ("GPU", "CPU"))
            found = f"room for {room} actors of {gpus:g} GPUs and {cpus:g} CPUs in a Ray cluster of {whole}"
            remedy = f"Start more nodes, or lower --ray-actors, --ray-gpus or --ray-cpus; {len(alive)} nodes are there."
            raise BadInput("--on ray", found, f"room for {seats}", remedy)
        return seats

    async def actor(self, seat: int) -> Actor:
        """The actor of a seat, started if there is none. Raises Lost, NoRoom, EngineGaveUp if Ray is gone."""
        if seat not in self._handles:
            gpus, cpus = self._size
            made = self._ray.remote(self._worker).options(
                num_gpus=gpus, num_cpus=cpus, max_restarts=0, max_task_retries=0
            )
            self._handles[seat] = made.remote(os.getcwd())
            self._places[seat] = asyncio.ensure_future(_answer(self._handles[seat].where.remote()))
        try:
            with losses():
                async with asyncio.timeout(LOOK_SECONDS):
                    node, pid = await asyncio.shield(self._places[seat])
        except Lost:
            self.end(seat)
            raise
        except TimeoutError:
            await self._see_that_ray_lives()
            gpus, cpus = self._size
            raise NoRoom(f"{gpus:g} GPUs and {cpus:g} CPUs are not free on any node") from None
        return Actor(self._handles[seat], f"Actor {seat} (process {pid} on {node})")

    async def _see_that_ray_lives(self) -> None:
        """Raise EngineGaveUp if no node is left: whoever waits for room would wait for nothing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                if not await self._apart(self.nodes):
                    raise EngineGaveUp(
                        "Ray is gone: none of its nodes is alive any more. The same command goes on from here; with "
                        "--ray-address, once there is a cluster again."
                    )

    def end(self, seat: int) -> None:
        """End the actor of a seat, if there is one; also one that is only out of reach must not go on."""
        handle = self._handles.pop(seat, None)
        if (place := self._places.pop(seat, None)) is not None:
            place.cancel()
        if handle is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(handle)


async def _answer(ref: Any) -> Any:
    return await ref


def _fits(node: Mapping[str, float], gpus: float, cpus: float) -> int:
    """How many actors a node holds; one of no size at all, one."""
    shares = [node.get(kind, 0) / size for kind, size in (("GPU", gpus), ("CPU", cpus)) if size]
    return int(min(shares) + 1e-9) if shares else 1


def _look(address: str) -> None:
    """Raise an OSError if nobody answers there: Ray itself would try for minutes. ValueError for no address."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()) or "/" in address:
        raise ValueError(f"'{address}' is no HOST:PORT")
    socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


@contextmanager
def losses() -> Generator[None]:
    """Ray's errors about an actor that is gone, as Lost. What an actor itself raises stays."""
    errors: Any = importlib.import_module("ray.exceptions")
    try:
        yield
    except errors.RayTaskError:
        raise
    except errors.RayError as error:
        raise Lost(_why(error)) from error


def _why(error: BaseException) -> str:
    """What Ray says of an actor's end, without its advice."""
    text = " ".join(str(error).split())
    told = text.rpartition("detail: ")[2].partition(" Some common causes")[0]
    return told[:200].rstrip(".") or type(error).__name__


class RayHand:
    """An actor at work on a stage. See `handout.Away` for the contract."""

    def __init__(self, actor: Actor, end: Callable[[], None], given: tuple[Any, ...]) -> None:
        self.name = actor.name
        self._handle, self._end, self._given = actor.handle, end, given

    def give(self, part: Part | None) -> None:
        self._handle.give.remote(part)

    def found(self, number: int, entry: Entry | None) -> None:
        self._handle.found.remote(number, entry)

    def stop(self) -> None:
        self._handle.stop.remote()

    async def news(self) -> AsyncGenerator[News]:
        try:
            with losses():
                async for ref in self._handle.news.options(num_returns="streaming").remote(*self._given):
                    yield await ref
        except Lost:
            self._end()
            raise

    async def probe(self) -> None:
        try:
            with losses():
                error = await self._handle.probe.remote()
        except Lost:
            self._end()
            raise
        if error is not None:
            raise error


def address_of_this_node() -> str:
    util: Any = importlib.import_module("ray.util")
    return util.get_node_ip_address()
