"""Starts and ends of the vLLM engine that go wrong: nothing is left running, and a user is told in one sentence."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cai.engines import Spec
from cai.engines import vllm as module
from cai.engines import vllm_options as options
from cai.engines.guard import marked
from cai.engines.vllm import VllmEngine
from cai.errors import BadInput, EngineGaveUp
from tests.fake_vllm import Fake, answers, asked, fake

__all__ = ["fake"]  # a fixture


async def enter(engine: VllmEngine) -> None:
    async with engine:
        pass


def process() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)"])


def slow_start(fake: Fake) -> list["subprocess.Popen[bytes]"]:
    """From now on a start has a process, and fails only when that has ended, as vLLM's does."""
    begun: list[subprocess.Popen[bytes]] = []

    def at_start() -> None:
        begun.append(process())
        begun[-1].wait(60)
        raise RuntimeError("Engine core initialization failed.")

    fake.at_start = at_start
    return begun


def guards(engine: VllmEngine) -> "subprocess.Popen[bytes]":
    guard = engine._guard._process
    assert guard is not None
    return guard


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


def test_a_start_that_is_broken_off_leaves_no_process_behind(fake: Fake):
    begun = slow_start(fake)

    async def broken_off() -> VllmEngine:
        engine = VllmEngine(Spec("vllm", "embedded"))
        entering = asyncio.create_task(enter(engine))
        await until(lambda: begun)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        return engine

    engine = asyncio.run(broken_off())
    assert begun[0].returncode is not None and guards(engine).returncode is not None
    assert len(begun) == 1


def test_an_engine_whose_start_is_broken_off_as_it_ends_is_ended(fake: Fake):
    going, go = threading.Event(), threading.Event()

    def at_start() -> None:
        going.set()
        go.wait(30)

    fake.at_start = at_start

    async def broken_off() -> None:
        entering = asyncio.create_task(enter(VllmEngine(Spec("vllm", "embedded"))))
        await until(going.is_set)
        entering.cancel()
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await entering

    asyncio.run(broken_off())
    assert [llm.dead.is_set() for llm in fake.made] == [True]


def test_a_start_that_is_broken_off_before_its_first_process_has_none(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    """The imports take long, and a thread cannot be broken off: it looks before it begins a process."""
    monkeypatch.setattr(module, "END_SECONDS", 0.05)
    going, go = threading.Event(), threading.Event()
    parts = module.import_module

    def slowly(name: str) -> object:
        going.set()
        go.wait(30)
        return parts(name)

    monkeypatch.setattr(module, "import_module", slowly)

    async def broken_off() -> VllmEngine:
        engine = VllmEngine(Spec("vllm", "embedded"))
        entering = asyncio.create_task(enter(engine))
        await until(going.is_set)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert guards(engine).poll() is None, "it stays where something may still be started"
        go.set()
        return engine

    engine = asyncio.run(broken_off())
    assert fake.made == []
    engine._guard.dismiss()


def test_the_end_does_not_wait_for_a_new_start(fake: Fake):
    async def ended() -> tuple[VllmEngine, float]:
        async with VllmEngine(Spec("vllm", "embedded")) as engine:
            begun = slow_start(fake)
            engine._llm.dead.set()
            call = asyncio.create_task(engine.complete(asked()))
            await until(lambda: begun)
            call.cancel()
            before = time.monotonic()
        assert [one.returncode is not None for one in begun] == [True]
        return engine, time.monotonic() - before

    engine, seconds = asyncio.run(ended())
    assert seconds < module.END_SECONDS and guards(engine).returncode is not None


def test_an_engine_that_does_not_end_in_its_own_way_is_killed(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "END_SECONDS", 0.2)
    begun: list[subprocess.Popen[bytes]] = []
    fake.at_start = lambda: begun.append(process())
    fake.at_end = lambda: begun[0].wait(60)
    _, engine = answers([asked()])
    assert begun[0].returncode is not None and marked(engine._guard.mark) == []


@pytest.mark.parametrize("kind", [TypeError, AssertionError, KeyError, ImportError, AttributeError, OSError])
def test_whatever_a_library_raises_at_the_start_is_one_sentence(fake: Fake, kind: type[Exception]):
    fake.fails_to_start = [kind("odd")]
    engine = VllmEngine(Spec("vllm", "embedded"))
    with pytest.raises(
        BadInput, match=r"^--model embedded: found a model that vLLM cannot start \(.*odd.*\), expected"
    ):
        asyncio.run(enter(engine))
    assert guards(engine).returncode is not None


def test_whatever_a_library_raises_after_a_death_is_another_try(fake: Fake):
    once = iter([True])

    def dies(prompt: str) -> bool:
        if next(once, False):
            fake.fails_to_start = [TypeError("odd"), KeyError("odd")]
            return True
        return False

    fake.dies = dies
    completions, engine = answers([asked(f"word {n}") for n in range(4)])
    assert [one.text for one in completions] == ["Fine."] * 4 and engine.restarts == 1


def test_an_engine_that_never_starts_again_is_given_up_whatever_it_raises(fake: Fake):
    def dies(prompt: str) -> bool:
        fake.fails_to_start = [AssertionError("odd")] * 9
        return True

    fake.dies = dies
    completions, _ = answers([asked(f"word {n}") for n in range(4)])
    assert all(isinstance(one, EngineGaveUp) for one in completions)


def test_a_dead_engine_that_cannot_be_put_away_is_replaced_all_the_same(fake: Fake):
    once = iter([True])
    fake.dies = lambda prompt: next(once, False)

    def at_end() -> None:
        raise KeyError("its process is gone")

    fake.at_end = at_end
    (completion,), engine = answers([asked()])
    assert completion.text == "Fine." and engine.restarts == 1


def refused(**fields: object) -> ValidationError:
    """What pydantic raises for such fields of a class of vLLM's."""

    def positive(value: int) -> int:
        if value > 4:
            raise ValueError(f"User-specified max_model_len ({value}) is greater than 4.\nOr so.")
        return value

    class Config(TypedDict, total=False):
        dtype: bool | Annotated[int, Field(ge=1)]
        len: Annotated[int, AfterValidator(positive)]

    try:
        TypeAdapter(Config).validate_python(fields)
    except ValidationError as error:
        return error
    raise AssertionError


STARTS = "found a model that vLLM cannot start"
SERVED = "expected a model that vLLM serves."
REFUSES = "found what vLLM refuses"
MEND = "expected what it takes for this model. Mend it, or leave it out."
HEADS = "Attention heads (9) must be divisible by tensor parallel size (4)"
NO_CORE = "Engine core initialization failed. See root cause above"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (
            ("dtype=-5",),
            refused(dtype=-5),
            f"--engine-option dtype=-5: {REFUSES} (Input should be a valid boolean, unable to interpret input; "
            f"Input should be greater than or equal to 1), {MEND}",
        ),
        (
            ("max-model-len=9", "dtype=half"),
            refused(len=9),
            f"--engine-option max-model-len=9: {REFUSES} (User-specified max_model_len (9) is greater than 4. Or so), "
            f"{MEND}",
        ),
        (
            ("tensor_parallel_size=4",),
            ValueError(f"{HEADS}."),
            f"--engine-option tensor_parallel_size=4: {REFUSES} ({HEADS}), {MEND}",
        ),
        (
            ("dtype=half", "data_parallel_size=2"),
            TypeError("not enough values"),
            f"--model embedded with --engine-option dtype=half, data_parallel_size=2: {STARTS} "
            f"(TypeError: not enough values), {SERVED} Try other engine options, or another model.",
        ),
        (
            (),
            ValueError("Unknown architecture"),
            f"--model embedded: {STARTS} (Unknown architecture), {SERVED} Try another model.",
        ),
        (
            (),
            RuntimeError(f"{NO_CORE}."),
            f"--model embedded: {STARTS} ({NO_CORE}), {SERVED} "
            "Its own messages are above; try another model or other engine options.",
        ),
    ],
)
def test_what_vllm_refuses_is_told_with_the_option_that_it_is_about(
    fake: Fake, options: tuple[str, ...], error: Exception, said: str
):
    fake.fails_to_start = [error]
    with pytest.raises(BadInput) as told:
        asyncio.run(enter(VllmEngine(Spec("vllm", "embedded", options=options))))
    assert str(told.value) == said


def test_slots_that_vllm_refuses_are_named(fake: Fake):
    fake.fails_to_start = [ValueError("max_num_batched_tokens (4) must be greater than or equal to max_num_seqs (9)")]
    with pytest.raises(BadInput, match=r"^--slots 9: found what vLLM refuses"):
        asyncio.run(enter(VllmEngine(Spec("vllm", "embedded", slots=9))))


def test_vllm_is_not_heard_before_it_has_read_what_it_may_say(fake: Fake, monkeypatch: pytest.MonkeyPatch):
    early = logging.getLogger("vllm.triton_utils.importing")
    for level, heard in (("INFO", True), (None, False)):
        early.setLevel(logging.NOTSET)
        monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
        if level:
            monkeypatch.setenv("VLLM_LOGGING_LEVEL", level)
        VllmEngine(Spec("vllm", "embedded"))
        assert early.isEnabledFor(logging.WARNING) is heard
    # What vLLM's processes import, before vLLM.
    program = "import cai, logging; print(logging.getLogger('vllm.triton_utils.importing').level)"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(logging.ERROR)


def adapter(folder: Path, **told: Any) -> str:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 40, **told}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return str(folder)


def test_an_adapter_has_room_for_its_rank_and_one_that_does_not_fit_is_refused_before_the_first_call(
    fake: Fake, tmp_path: Path
):
    spec = Spec("vllm", "embedded", adapter=adapter(tmp_path / "mine", rank_pattern={"q_proj": 48}))
    (answer,), _ = answers([asked()], spec)
    assert answer.text == "Fine." and fake.starts[0]["max_lora_rank"] == 64
    assert fake.calls[0][2]["lora_request"] == ("adapter", 1, spec.adapter)
    fake.refuses_adapter, before = ValueError("its q_proj has another shape"), len(fake.calls)
    with pytest.raises(BadInput, match=r"^--adapter \S+mine: found what vLLM refuses \(its q_proj has another shape\)"):
        answers([asked()], spec)
    assert len(fake.calls) == before and len(fake.starts) == 2 and fake.made[-1].dead.is_set(), "and nothing is left"


def test_how_the_model_is_run_is_no_option_and_what_has_no_value_is_told_without_vllm(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(options, "import_module", lambda name: pytest.fail("it takes seconds"))
    for one, words in (("runner=pooling", "sets itself"), ("dtype", "no '='"), ("=3", "no name")):
        with pytest.raises(BadInput, match=words):
            options.engine_options((one,))
