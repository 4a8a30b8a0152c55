"""Attention for decoding on a CPU: grouped queries against the cache as it lies, without a copy for each query head.

The library's default spreads keys and values to all query heads and takes a slow path for one masked query in
bfloat16. Measured on two cores with SmolLM2-135M, 32 rows of 1,000 tokens: 28 tokens/s with it, 212 with this.
"""

from typing import Any

import torch

# Models whose attention is plain: no soft cap, no sinks. Others keep the library's own.
PLAIN_MODELS = frozenset({"llama", "mistral", "qwen2", "qwen3", "smollm3"})


def register_grouped() -> str:
    """Make the implementation known to transformers; returns its name for `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register("cai_grouped", grouped_attention)
    AttentionMaskInterface.register("cai_grouped", eager_mask)
    return "cai_grouped"


def grouped_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `query` [batch, heads, queries, size] over `key` and `value` [batch, groups, tokens, size].

    `attention_mask` [batch, 1, queries, tokens] is added to the scores. Returns [batch, queries, heads, size].
    """
    batch, heads, queries, size = query.shape
    groups = key.shape[1]
    scale = size**-0.5 if scaling is None else scaling
    scores = query.reshape(batch, groups, -1, size) @ key.transpose(2, 3) * scale
    scores = scores.view(batch, groups, heads // groups, queries, -1)
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, None, :, : key.shape[2]]
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    mixed = weights.view(batch, groups, -1, key.shape[2]) @ value
    return mixed.view(batch, heads, queries, size).transpose(1, 2).contiguous(), None
