"""The vLLM engine: its life and its calls against a vLLM that plays dead, and (marked `vllm`) against the real one."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from cai.engines import Completion, Sampling, Spec, open_engine
from cai.engines import vllm as module
from cai.engines.guard import kill_marked, marked
from cai.engines.vllm import VllmEngine
from cai.engines.vllm_calls import Held
from cai.errors import BadInput, EngineGaveUp, RequestRefused
from cai.rows import Message
from cai.settings import ReviseSettings
from cai.stages import revise_stage
from cai.store import open_run
from tests.conftest import Quiet
from tests.fake_vllm import Fake, answers, asked, fake

__all__ = ["fake"]  # a fixture


def test_an_answer_is_read_without_its_end_token_and_a_forced_word_by_its_log_probability(fake: Fake):
    (said, forced), _ = answers([asked(), asked(choices=("Yes", "No"), position=7)])
    assert isinstance(said, Completion) and isinstance(forced, Completion)
    assert (said.text, said.finish, said.cached_tokens, said.completion_tokens) == (
        "Fine.",
        "stop",
        5,
        len(said.token_ids) + 1,
    )
    assert (forced.text, forced.choice_logprobs, forced.completion_tokens) == ("Yes", (-1.0, -2.0), 1)
    (_, sampled, first), (_, letters, second) = fake.calls
    assert (sampled.max_tokens, sampled.temperature, sampled.top_p, sampled.seed) == (8, 0.7, 0.9, 3)
    assert (letters.max_tokens, letters.temperature, len(letters.logprob_token_ids)) == (1, 0.0, 2)
    assert (first["priority"], second["priority"]) == (0, 7)


def test_a_death_loses_nothing(fake: Fake):
    once = iter([True])
    fake.dies = lambda prompt: "poison" in prompt and next(once, False)
    completions, engine = answers([asked(f"word {n}") for n in range(8)] + [asked("poison")])
    assert [one.text for one in completions] == ["Fine."] * 9
    assert engine.restarts == 1 and len(fake.starts) == 2


def test_a_call_that_kills_the_engine_is_refused_and_the_others_are_answered(fake: Fake):
    fake.dies = lambda prompt: "poison" in prompt
    completions, engine = answers([asked(f"word {n}") for n in range(8)] + [asked("poison")])
    assert isinstance(completions.pop(), RequestRefused)
    assert [one.text for one in completions] == ["Fine."] * 8
    assert engine.restarts == 3, "twice with the others, once alone"


def test_an_engine_that_dies_of_everything_is_given_up(fake: Fake):
    fake.dies = lambda prompt: True
    completions, _ = answers([asked(f"word {n}") for n in range(6)])
    assert all(isinstance(one, EngineGaveUp) for one in completions), "no row is to blame"
    assert len(fake.starts) <= module.MOST_ENDS


def test_an_answer_that_was_aborted_is_asked_again(fake: Fake):
    """An engine that is told to end finishes all it has with the reason "abort"."""
    fake.reasons = ["abort"] * 4
    completions, engine = answers([asked(f"word {n}") for n in range(4)])
    assert [(one.text, one.finish) for one in completions] == [("Fine.", "stop")] * 4 and engine.restarts == 1


def test_what_vllm_finds_wrong_with_one_call_is_that_call_s_drop(fake: Fake):
    fake.fails = {"word 1": KeyError("odd"), "word 2": LookupError("too many tokens"), "word 3": ValueError("no")}
    completions, engine = answers([asked(f"word {n}") for n in range(5)])
    assert [isinstance(one, RequestRefused) for one in completions] == [False, True, True, True, False]
    assert engine.restarts == 0 and "too many tokens" in str(completions[2])


def test_a_cancelled_call_leaves_one_start_behind_and_the_end_waits_for_it(fake: Fake):
    async def cancelled() -> int:
        async with VllmEngine(Spec("vllm", "embedded")) as engine:
            engine._llm.dead.set()
            first, second = (asyncio.create_task(engine.complete(asked(f"word {n}"))) for n in range(2))
            await asyncio.sleep(0)
            first.cancel()
            assert (await second).text == "Fine."
            engine._llm.dead.set()
            late = asyncio.create_task(engine.complete(asked()))
            await asyncio.sleep(0)
            late.cancel()
        return len(fake.starts)

    assert asyncio.run(cancelled()) <= 3
    assert all(llm.dead.is_set() for llm in fake.made), "nothing is left running"


def test_a_call_that_comes_after_a_death_is_not_blamed_for_it(fake: Fake):
    once = iter([True])
    fake.dies = lambda prompt: "poison" in prompt and next(once, False)

    async def late() -> tuple[str, int]:
        async with VllmEngine(Spec("vllm", "embedded")) as engine:
            await asyncio.gather(*(engine.complete(asked(f"word {n}")) for n in range(3)))
            engine._llm.dead.set()  # it dies while nobody asks
            return (await engine.complete(asked())).text, engine.restarts

    assert asyncio.run(late()) == ("Fine.", 1)
    assert len(fake.calls) == 4, "the last one was sent once"


def test_a_start_that_fails_is_tried_again(fake: Fake):
    once = iter([True])

    def dies(prompt: str) -> bool:
        if next(once, False):
            fake.fails_to_start = [RuntimeError("no room on the device")]
            return True
        return False

    fake.dies = dies
    (completion,), engine = answers([asked()])
    assert completion.text == "Fine." and engine.restarts == 1 and len(fake.starts) == 2


def test_a_prompt_longer_than_the_window_is_refused_before_it_is_sent(fake: Fake):
    (long, short), _ = answers([asked("word " * 300), asked()])
    assert isinstance(long, RequestRefused) and "exceed the window of 256" in str(long)
    assert short.text == "Fine." and len(fake.calls) == 1


def test_optional_turns_are_left_out_where_they_do_not_fit(fake: Fake):
    older = (Message("user", "word " * 300, optional=True), Message("assistant", "fine", optional=True))
    long = replace(asked(), messages=(*older, *asked().messages))
    (shortened, whole), _ = answers([long, asked()])
    assert (shortened.text, shortened.left_out, whole.left_out) == ("Fine.", 2, 0)
    assert shortened.prompt_tokens == whole.prompt_tokens


def test_what_changes_an_answer_is_in_the_model_s_name(fake: Fake):
    plain, fast, other = (
        VllmEngine(Spec("vllm", "embedded", options=options)).model
        for options in ((), ("tensor_parallel_size=2",), ("dtype=float32",))
    )
    assert plain == fast and other == plain + ' {"dtype": "float32"}'


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("tensor_paralel_size=2", "Did you mean 'tensor_parallel_size'?"),
        ("dtype", "no '='"),
        ("=3", "found no name, expected name=value"),
        ("model=x", "cai sets itself"),
        ("dtype=[1", "cannot be read"),
        ("dtype=2020-01-01", "cannot be read"),
        ("data_parallel_size=abc", "a whole number from 1 on"),
        ("tensor_parallel_size=0", "a whole number from 1 on"),
    ],
)
def test_engine_options_that_mean_nothing_are_refused(fake: Fake, option: str, said: str):
    with pytest.raises(BadInput, match="--engine-option") as refused:
        VllmEngine(Spec("vllm", "embedded", options=(option,)))
    assert said in str(refused.value)


def test_a_folder_without_a_tokenizer_is_refused_in_one_sentence(fake: Fake, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes(b"")

    async def enter() -> None:
        async with VllmEngine(Spec("vllm", str(tmp_path))):
            pass

    with pytest.raises(BadInput, match="a model that vLLM cannot start"):
        asyncio.run(enter())


def test_weights_and_adapters_are_safetensors_unless_asked_otherwise(fake: Fake, tmp_path: Path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    folder, asked = str(tmp_path), ("load_format=pt",)
    for spec in (Spec("vllm", folder), Spec("vllm", "embedded", adapter=folder)):
        with pytest.raises(BadInput, match=r"found pickled weights \(pytorch_model\.bin\), which can run code"):
            VllmEngine(spec)
        assert "load_format" in VllmEngine(replace(spec, options=asked)).model
    for options in ((), ("load_format=auto",)):
        answers([], Spec("vllm", "embedded", options=options))
    assert [start["load_format"] for start in fake.starts] == ["safetensors", "auto"]


def test_options_and_adapters_need_this_engine():
    with pytest.raises(BadInput, match="--engine vllm"):
        open_engine(Spec("transformers", "embedded", options=("dtype=auto",)))
    with pytest.raises(BadInput, match="--adapter"):
        open_engine(Spec("auto", "embedded", adapter="x"))


def test_the_slots_grow_until_calls_wait_and_shrink_where_the_cache_is_full():
    held = Held(100)
    assert held.total(2) == 16, "before anything is known"
    seen = []
    for running in (8, 16, 26, 36):
        held.record(0, running, 0, 0.1)
        seen.append(held.total(1))
    assert seen == [16, 24, 34, 45]
    held.record(0, 45, 0, 0.95)
    assert held.total(1) == 45, "a cache that is nearly full"
    held.record(0, 30, 15, 0.99)
    assert held.total(1) == 30
    for _ in range(20):
        held.record(0, held.total(1), 0, 0.1)
    assert held.total(1) == 100, "never more than the most"
    held.record(1, 5, 3, 0.5)
    assert held.total(2) == 105


def test_slots_are_what_the_scheduler_says(fake: Fake):
    async def watched() -> list[int]:
        async with VllmEngine(Spec("vllm", "embedded", slots=48)) as engine:
            before = engine.slots
            stats = SimpleNamespace(
                num_running_reqs=20, num_waiting_reqs=1, num_skipped_waiting_reqs=1, kv_cache_usage=0.9
            )
            fake.gauges[-1].record(stats, None, engine_idx=0)
            return [before, engine.slots]

    assert asyncio.run(watched()) == [8, 20]
    assert fake.starts[0]["max_num_seqs"] == 48


def test_a_cancelled_call_leaves_the_door_open(fake: Fake):
    async def cancelled() -> str:
        async with VllmEngine(Spec("vllm", "embedded")) as engine:
            task = asyncio.create_task(engine.complete(asked("slow")))
            await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(5), engine._door.open(alone=True):
                return (await asyncio.gather(asyncio.sleep(0, "in")))[0]

    assert asyncio.run(cancelled()) == "in"


# The real one


@pytest.mark.vllm
@pytest.mark.timeout(900)  # it starts the engine twice
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_the_real_engine_answers_reuses_prefixes_and_survives_its_own_death():
    async def live() -> None:
        spec = Spec("vllm", "embedded", slots=16, options=("max_model_len=512",))
        async with VllmEngine(spec) as engine:
            first = await engine.complete(asked("Name a colour of the sky. " * 10, sampling=Sampling(40, 0.0)))
            assert first.text and first.token_ids
            turns = (
                Message("user", "Name a colour of the sky. " * 10),
                Message("assistant", first.text, first.token_ids, engine.model),
                Message("user", "Is that a colour? Answer Yes or No."),
            )
            forced = await engine.complete(asked(messages=turns, choices=("Yes", "No")))
            assert forced.choice_logprobs is not None and max(forced.choice_logprobs) < 0
            # Whole blocks of 32 of what was read and generated are in the cache.
            assert forced.cached_tokens >= (first.prompt_tokens + len(first.token_ids)) // 32 * 32 - 32
            long = await asyncio.gather(engine.complete(asked("word " * 600)), return_exceptions=True)
            assert isinstance(long[0], RequestRefused)
            waiting = [
                asyncio.create_task(engine.complete(asked(f"Count to {n}.", sampling=Sampling(200)))) for n in range(8)
            ]
            await asyncio.sleep(0.5)
            assert not all(task.done() for task in waiting)
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
            answered = await asyncio.gather(*waiting)
            assert all(one.text for one in answered) and engine.restarts == 1

    asyncio.run(live())


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_a_run_on_the_real_engine_outlives_it_and_loads_one_model_for_three_roles_once(tmp_path: Path):
    rows = [{"id": f"r{n}", "prompt": f"What is {n} and {n}?"} for n in range(15)]
    rows.insert(7, {"id": "long", "prompt": "word " * 900})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Killing(Quiet):
        """Kills the engine's processes when five rows are done."""

        def row(self, kept: bool) -> None:
            super().row(kept)
            if len(self.rows) == 5:
                self.killed = workers()
                for pid in self.killed:
                    os.kill(pid, signal.SIGKILL)

    settings = ReviseSettings(
        prompts=str(prompts), out=str(tmp_path / "run"), engine="vllm", engine_option=("max_model_len=800",),
        critic="embedded", reviser="embedded", wording="short", principles="one", gate_threshold=0.0, revision_tries=1,
        failed_revision="keep", max_tokens=30, critique_max_tokens=20, revision_max_tokens=20, slots=4,
    )  # fmt: skip
    watch = Killing()
    outcome = asyncio.run(revise_stage(settings, watch))
    counts = outcome.entry["counts"]
    assert (counts["read"], counts["kept"], counts["dropped_by_reason"]) == (16, 15, {"refused_by_engine": 1})
    assert outcome.session.engine_restarts == 1
    (drop,) = open_run(settings.out).dropped("revise", "trajectories")
    assert drop["row_id"] == "long" and "exceed the window of 800" in drop["detail"]
    assert [row["row_id"] for row in open_run(settings.out).records("trajectories")] == [f"r{n}" for n in range(15)]
    assert 0 < len(watch.killed) <= 2, "one engine for three roles: its core, and a worker"


@pytest.mark.vllm
@pytest.mark.timeout(900)  # it starts the engine twice
@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_nothing_of_the_real_engine_is_left_after_ctrl_c_while_it_loads_and_after_a_kill_while_it_works(tmp_path: Path):
    rows = [{"id": f"r{n}", "prompt": f"Tell me a story about {n} and {n}."} for n in range(200)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "cai", "generate", "prompts.jsonl", "--engine", "vllm", "--out", "run"]
    command += ["--max-tokens", "8", "--slots", "4"]
    mark = f"CAI_TEST={tmp_path}"  # all of its processes have it

    def started() -> "subprocess.Popen[bytes]":
        with (tmp_path / "log.txt").open("wb") as log:
            return subprocess.Popen(
                command, cwd=tmp_path, stderr=log, stdout=log, start_new_session=True,
                env={**os.environ, "CAI_TEST": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent)},
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def until(true: Callable[[], object], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()
            time.sleep(0.05)

    def spawned() -> bool:
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in marked(mark)]
        return any(b"spawn_main" in line or b"EngineCore" in line for line in lines)

    try:
        loading = started()
        until(spawned, 400)
        os.killpg(loading.pid, signal.SIGINT)  # as a terminal does
        assert loading.wait(20) == 130
        until(lambda: not marked(mark), 20)
        told = (tmp_path / "log.txt").read_text()
        assert told.endswith("The same command goes on from here.\n") and "Traceback" not in told

        working = started()
        until(lambda: any(path.stat().st_size for path in (tmp_path / "run" / "journal").glob("*")), 400)
        assert len(marked(mark)) > 3
        working.kill()
        working.wait()
        until(lambda: not marked(mark), 20)
    finally:
        kill_marked(mark, 10.0)


def workers() -> list[int]:
    """The processes of vLLM's engine that this one has started, and those that they have; not what looks after them."""
    import psutil

    children = {one.pid: " ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)}
    return [pid for pid, line in children.items() if "resource_tracker" not in line and "guard.py" not in line]
