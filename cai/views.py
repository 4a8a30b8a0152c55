"""The same rows in the forms of other trainers: `--for openrlhf`, `llama-factory`, `axolotl`, `verl`, `nemo-rl`.

TRL takes the dataset as it stands. Each other trainer gets a folder of its own name with one file for each kind and
split, in the columns that its loader reads and no others; the snippet that makes it read them goes into the card. Which
loaders these were checked against is in docs/training.md.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from cai.dataset import (
    SPLITS,
    Tables,
    arrow_table,
    json_text,
    write_json_lines,
    write_parquet,
    write_text,
)
from cai.ids import digest
from cai.schemas import MESSAGE, MESSAGES, schema_of
from cai.seal import Json

Trainer = Literal["trl", "openrlhf", "llama-factory", "axolotl", "verl", "nemo-rl"]


@dataclass(slots=True)
class View:
    """A trainer's files by name: rows with a schema become Parquet, rows without one JSON lines, an object JSON.

    `left_out` counts the rows that this trainer cannot read, by reason.
    """

    parquet: dict[str, tuple[list[Json], Any]] = field(default_factory=dict[str, tuple[list[Json], Any]])
    lines: dict[str, list[Json]] = field(default_factory=dict[str, list[Json]])
    json: dict[str, Json] = field(default_factory=dict[str, Json])
    left_out: Counter[str] = field(default_factory=Counter[str])


def make_view(trainer: Trainer, tables: Tables) -> View:
    """The files of a trainer's view; TRL has none. Kinds and splits without rows have no file."""
    views: dict[Trainer, Callable[[Tables], View]] = {
        "trl": lambda tables: View(),
        "openrlhf": openrlhf,
        "llama-factory": llama_factory,
        "axolotl": axolotl,
        "verl": verl,
        "nemo-rl": nemo_rl,
    }
    view = views[trainer](tables)
    view.parquet = {name: made for name, made in view.parquet.items() if made[0]}
    view.lines = {name: rows for name, rows in view.lines.items() if rows}
    return view


def write_view(folder: Path, trainer: Trainer, view: View) -> list[Json]:
    """Write a view below `folder`; returns path, rows, bytes and sha256 of each file."""
    home = folder / trainer
    files = [
        write_parquet(folder, home / name, arrow_table(rows, schema)) for name, (rows, schema) in view.parquet.items()
    ]
    files += [write_json_lines(folder, home / name, rows) for name, rows in view.lines.items()]
    return files + [write_text(folder, home / name, json_text(value)) for name, value in view.json.items()]


_ROW_ID = ("row_id", pa.string())
_SFT = schema_of(("messages", MESSAGES), _ROW_ID)


def openrlhf(tables: Tables) -> View:
    """OpenRLHF: prompt and replies as lists of messages, which it joins and renders; the margin for reward models."""
    schema = schema_of(
        *(("prompt", MESSAGES), ("chosen", MESSAGES), ("rejected", MESSAGES)), ("margin", pa.float64()), _ROW_ID
    )
    view = View()
    for split in SPLITS:
        view.parquet[f"sft-{split}.parquet"] = _pick(tables["sft"][split], _SFT), _SFT
        view.parquet[f"preference-{split}.parquet"] = _pick(tables["reward"][split], schema), schema
    return view


def llama_factory(tables: Tables) -> View:
    """LLaMA-Factory: conversations in its `sharegpt` form, and the dataset_info.json that names the columns.

    It passes over conversations whose turns do not alternate, beginning with the user (after a system message); they
    are left out here, and counted. Its file loader knows no splits, so a test set is a dataset of its own.
    """
    view = View()
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    tags |= {"system_tag": "system", "observation_tag": "tool", "function_tag": "function"}
    for split in SPLITS:
        sft = [{"messages": row["messages"], "row_id": row["row_id"]} for row in tables["sft"][split]]
        preference = [
            {"messages": row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]}
            | {"row_id": row["row_id"]}
            for row in tables["preference"][split]
        ]
        kto = [
            {"messages": [*row["prompt"], *row["completion"]], "label": row["label"], "row_id": row["row_id"]}
            for row in tables["kto"][split]
        ]
        columns = {"sft": {}, "preference": {"chosen": "chosen", "rejected": "rejected"}, "kto": {"kto_tag": "label"}}
        for kind, rows in (("sft", sft), ("preference", preference), ("kto", kto)):
            fitting = [row for row in rows if _alternates(row["messages"])]
            view.left_out[f"{kind}: turns do not alternate"] += len(rows) - len(fitting)
            view.lines[f"{kind}-{split}.jsonl"] = fitting
            if fitting:
                name = f"cai_{kind}" if split == "train" else f"cai_{kind}_{split}"
                view.json.setdefault("dataset_info.json", {})[name] = {
                    "file_name": f"{kind}-{split}.jsonl",
                    "formatting": "sharegpt",
                    "ranking": kind == "preference",
                    "columns": {"messages": "messages"} | columns[kind],
                    "tags": tags,
                }
    view.left_out = +view.left_out
    return view


def axolotl(tables: Tables) -> View:
    """axolotl: `messages` for SFT; for `dpo/chat_template.default` the prompt as `messages`, and single replies."""
    schema = schema_of(("messages", MESSAGES), ("chosen", MESSAGE), ("rejected", MESSAGE), _ROW_ID)
    view = View()
    for split in SPLITS:
        pairs = [
            {"messages": row["prompt"], "chosen": row["chosen"][0], "rejected": row["rejected"][0]}
            | {"row_id": row["row_id"]}
            for row in tables["preference"][split]
        ]
        view.parquet[f"sft-{split}.parquet"] = _pick(tables["sft"][split], _SFT), _SFT
        view.parquet[f"preference-{split}.parquet"] = pairs, schema
    return view


def verl(tables: Tables) -> View:
    """verl: `messages` for SFT, text for reward models, and each prompt once for reinforcement learning.

    Its reward-model dataset takes text and renders nothing, so a conversation is written out as Human and Assistant, as
    in Bai et al. 2022; a model that is scored later must be shown the same form.
    """
    text = schema_of(("prompt", pa.string()), ("chosen", pa.string()), ("rejected", pa.string()), _ROW_ID)
    style = pa.struct([pa.field("style", pa.string(), False), pa.field("ground_truth", pa.string(), False)])
    where = pa.struct([pa.field("split", pa.string(), False), pa.field("index", pa.int64(), False)])
    prompts = schema_of(
        *(("data_source", pa.string()), ("prompt", MESSAGES), ("ability", pa.string())),
        *(("reward_model", style), ("extra_info", where)),
    )
    view = View()
    for split in SPLITS:
        pairs = [
            {
                "prompt": written_out(row["prompt"]),
                "chosen": " " + row["chosen"][0]["content"],
                "rejected": " " + row["rejected"][0]["content"],
                "row_id": row["row_id"],
            }
            for row in tables["preference"][split]
        ]
        asked = [row["prompt"] for row in tables["preference"][split]]
        asked += [row["messages"][:-1] for row in tables["sft"][split]]
        unique = {digest(prompt): prompt for prompt in asked}
        rollouts: list[Json] = [
            {
                "data_source": "constitutional-ai",
                "prompt": prompt,
                "ability": "alignment",
                "reward_model": {"style": "model", "ground_truth": ""},
                "extra_info": {"split": split, "index": index},
            }
            for index, prompt in enumerate(unique.values())
        ]
        view.parquet[f"sft-{split}.parquet"] = _pick(tables["sft"][split], _SFT), _SFT
        view.parquet[f"reward-{split}.parquet"] = pairs, text
        view.parquet[f"prompts-{split}.parquet"] = rollouts, prompts
    return view


def nemo_rl(tables: Tables) -> View:
    """NeMo RL: JSON lines with `messages`, or with `context` and two ranked `completions`, the better one first."""
    view = View()
    for split in SPLITS:
        view.lines[f"sft-{split}.jsonl"] = _pick(tables["sft"][split], _SFT)
        view.lines[f"preference-{split}.jsonl"] = [
            {
                "context": row["prompt"],
                "completions": [
                    {"rank": 0, "completion": row["chosen"]},
                    {"rank": 1, "completion": row["rejected"]},
                ],
                "row_id": row["row_id"],
            }
            for row in tables["preference"][split]
        ]
    return view


def written_out(prompt: Sequence[Json]) -> str:
    """A conversation as text that ends where the assistant is to speak; a system message stands in front as it is."""
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: ", "system": ""}
    return "".join(names[turn["role"]] + turn["content"] for turn in prompt) + "\n\nAssistant:"


def _pick(rows: Sequence[Json], schema: Any) -> list[Json]:
    return [{name: row[name] for name in schema.names} for row in rows]


def _alternates(messages: Sequence[Json]) -> bool:
    roles = [turn["role"] for turn in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    return all(role == ("user", "assistant")[place % 2] for place, role in enumerate(spoken))


# What a user writes to train on it. DIR is the exported folder; %(smoothing)s is what the card recommends.

_TRL = """```python
from datasets import load_dataset
from trl import %(name)sConfig, %(name)sTrainer

data = load_dataset("DIR", "%(config)s")%(others)s
arguments = %(name)sConfig(output_dir="out"%(options)s)
trainer = %(name)sTrainer("MODEL", args=arguments, train_dataset=data["train"])
trainer.train()
```"""
_OTHERS = "      # sft for SFTTrainer, reward for RewardTrainer, kto for KTOTrainer"

_OPENRLHF = {
    "sft": """```sh
python -m openrlhf.cli.train_sft --data.dataset DIR/openrlhf/sft-train.parquet \\
  --data.input_key messages --data.apply_chat_template --model.model_name_or_path MODEL
```""",
    "preference": """```sh
python -m openrlhf.cli.train_dpo --data.dataset DIR/openrlhf/preference-train.parquet \\
  --data.prompt_key prompt --data.apply_chat_template --model.label_smoothing %(smoothing)s \\
  --model.model_name_or_path MODEL
python -m openrlhf.cli.train_rm --data.dataset DIR/openrlhf/preference-train.parquet \\
  --data.prompt_key prompt --data.apply_chat_template --model.margin_loss_enable --model.model_name_or_path MODEL
```""",
}

_LLAMA_FACTORY = {
    "sft": """```yaml
dataset_dir: DIR/llama-factory
stage: sft
dataset: cai_sft
```""",
    "preference": """```yaml
dataset_dir: DIR/llama-factory
stage: dpo                    # rm with cai_preference, kto with cai_kto
dataset: cai_preference
pref_loss: sigmoid            # the one loss that takes a smoothing there
dpo_label_smoothing: %(smoothing)s
```""",
}

_AXOLOTL = {
    "sft": """```yaml
datasets:
  - path: DIR/axolotl/sft-train.parquet
    ds_type: parquet
    split: train
    type: chat_template
```""",
    "preference": """```yaml
rl: dpo
dpo_loss_type: [exo_pair]
dpo_label_smoothing: %(smoothing)s
datasets:
  - path: DIR/axolotl/preference-train.parquet
    ds_type: parquet
    split: train
    type: chat_template.default
```""",
}

_VERL = {
    "sft": """```sh
torchrun -m verl.trainer.sft_trainer data.train_files=DIR/verl/sft-train.parquet data.messages_key=messages \\
  model.path=MODEL
```""",
    "preference": """`reward-train.parquet` is for `verl.utils.dataset.RMDataset`: text, its turns written out as Human
and Assistant.""",
    "test": """```sh
python -m verl.trainer.main_ppo data.train_files=DIR/verl/prompts-train.parquet \\
  data.val_files=DIR/verl/prompts-test.parquet
```""",
}

_NEMO_RL = {
    "sft": """For SFT `DIR/nemo-rl/sft-train.jsonl` with `dataset_name: openai_format` and
`processor: sft_processor`.""",
    "preference": """```yaml
data:
  train:
    data_path: DIR/nemo-rl/preference-train.jsonl
  default:
    dataset_name: PreferenceDataset
    prompt_file: null
    system_prompt_file: null
```""",
    "preference test": """`preference-test.jsonl` is for `validation`, in the same way.""",
}

_PARTS: dict[Trainer, dict[str, str]] = {
    "openrlhf": _OPENRLHF,
    "llama-factory": _LLAMA_FACTORY,
    "axolotl": _AXOLOTL,
    "verl": _VERL,
    "nemo-rl": _NEMO_RL,
}


def snippet(trainer: Trainer, smoothing: float, written: Mapping[str, Mapping[str, int]]) -> str:
    """What a user writes to train on the dataset with this trainer, as Markdown. It names no file that is not there:
    `written` has the rows of each config, by split."""
    there = {config for config in written if sum(written[config].values())}
    if trainer == "trl":
        dpo = f', loss_type="exo_pair", label_smoothing={smoothing}'
        pairs = {"name": "DPO", "config": "preference", "options": dpo, "others": _OTHERS if "sft" in there else ""}
        answers = {"name": "SFT", "config": "sft", "options": "", "others": ""}
        return _TRL % (pairs if "preference" in there else answers)
    known = {*there, *(f"{config} test" for config in there if written[config]["test"])}
    if any(written[config]["test"] for config in there):
        known.add("test")
    return "\n\n".join(text % {"smoothing": smoothing} for part, text in _PARTS[trainer].items() if part in known)
