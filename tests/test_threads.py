"""What works in a thread is over before whoever waited for it goes on, cancelled or not."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cai import export as exporting
from cai.settings import ExportSettings
from cai.stages import export_stage
from cai.threads import in_thread
from tests.conftest import Quiet
from tests.small import answer_by_script, before


async def cancelled(work: "asyncio.Task[object]", begun: threading.Event, times: int) -> None:
    """Cancel the task so many times while its thread works, and wait for its end."""
    while not begun.is_set():
        await asyncio.sleep(0.01)
    for _ in range(times):
        work.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await work


@pytest.mark.parametrize("times", [1, 2, 3])
def test_who_is_cancelled_once_or_more_often_waits_for_the_thread(times: int):
    begun, ended, told = threading.Event(), list[str](), list[str]()

    def work() -> None:
        begun.set()
        time.sleep(0.3)
        ended.append("the thread")

    async def go() -> None:
        task = asyncio.ensure_future(in_thread(work, stop=lambda: told.append("to stop")))
        await cancelled(task, begun, times)
        assert ended == ["the thread"] and told == ["to stop"]

    asyncio.run(go())


def test_what_a_thread_returns_or_raises_comes_back():
    async def both(work: Callable[[], object]) -> object:
        return await in_thread(work)

    assert asyncio.run(both(lambda: 5)) == 5
    with pytest.raises(ZeroDivisionError):
        asyncio.run(both(lambda: 1 / 0))


@pytest.mark.parametrize("times", [1, 2])
def test_an_export_that_is_cancelled_leaves_no_thread_and_no_lock_and_can_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
):
    answer_by_script(monkeypatch)
    folder, real, begun = before("export", tmp_path / "a"), exporting.card, threading.Event()

    def slowly(*given: object) -> str:
        begun.set()
        time.sleep(0.3)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(exporting, "card", slowly)
    settings = ExportSettings(run=str(folder / "run"), out=str(folder / "set"))

    async def twice() -> None:
        await cancelled(asyncio.ensure_future(export_stage(settings, Quiet())), begun, times)
        assert [path.name for path in folder.iterdir() if "set" in path.name] == []
        await export_stage(settings, Quiet())

    asyncio.run(twice())
    assert (folder / "set" / "manifest.json").exists()
