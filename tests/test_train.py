"""What is exported trains: TRL's trainers take it as a user loads it, without any code in between."""

import math
from pathlib import Path
from typing import Any

import pytest

from cai.contents import ExportMethod
from cai.engines.embedded import embedded_model
from cai.export import export
from tests.runs import label, one_round, pair, text, trajectory, write_run

trl = pytest.importorskip("trl", exc_type=ImportError)

pytestmark = [pytest.mark.train, pytest.mark.timeout(600)]


TALK = [("system", "Be brief."), ("user", "Who is it?"), ("assistant", "A friend!"), ("user", text("question"))]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a conversation, a clean answer, a label that only a person gave, and pairs in either order."""
    folder = tmp_path_factory.mktemp("exported")
    names = [f"r{n}" for n in range(8)]
    labels = [label(name, "b", 0.3) if n % 2 else label(name) for n, name in enumerate(names[1:])]
    run = write_run(
        folder / "run",
        trajectories=[
            trajectory("talk", [one_round(text("better"))], prompt=TALK),
            *(trajectory(name, [one_round(text(name) if name != "r7" else None)]) for name in names),
        ],
        pairs=[pair("talk", prompt=TALK), *(pair(name) for name in names)],
        labels=[label("talk"), label("r0", "a", None, margin=None, judged="none", reviewed="a"), *labels],
    )
    method = ExportMethod(
        seed=0, sft="final", clean_answers=True, helpful=None, helpful_share=0.0, test_share=0.0, near_duplicates=0.8,
        length_ratio=None, decontaminate=(), licence="apache-2.0", trainer="trl",
    )  # fmt: skip
    export(run, folder / "out", method, "cai export RUN --out DIR", lambda sentence: None)
    return folder / "out"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model with random weights, with the embedded model's tokenizer and chat template."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("model")
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded_model()[0])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **special)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False}
    steps = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1}
    return {"output_dir": str(tmp_path), "seed": 0, **quiet, **steps, **changes}


@pytest.mark.parametrize(
    ("config", "trainer", "loss", "answer"),
    [
        ("sft", "SFT", {}, text("better")),
        ("preference", "DPO", {"loss_type": "exo_pair", "label_smoothing": 0.2}, text(("a", "talk"))),
        ("reward", "Reward", {}, text(("a", "talk"))),
        ("kto", "KTO", {}, text(("a", "talk"))),
    ],
)
def test_a_trl_trainer_takes_the_dataset_as_it_is(
    exported: Path, model: str, tmp_path: Path, config: str, trainer: str, loss: dict[str, Any], answer: str
):
    from datasets import load_dataset

    data = load_dataset(str(exported), config, split="train", cache_dir=str(tmp_path / "cache"))
    arguments = getattr(trl, f"{trainer}Config")(**settings(tmp_path, **loss))
    made = getattr(trl, f"{trainer}Trainer")(model, args=arguments, train_dataset=data)
    assert len(made.train_dataset) == len(data), "the trainer drops none of them"
    seen = made.train_dataset[0]
    whole = next(name for name in ("input_ids", "chosen_ids", "completion_ids") if name in seen)
    ids = seen.get("prompt_ids", []) + seen[whole]
    read = made.processing_class.decode(ids)
    for turn in (*(content for _, content in TALK), answer):
        assert read.count(turn) == 1, "each turn once: neither lost nor doubled"
    result = made.train()
    assert result.global_step == 2 and math.isfinite(result.training_loss)
