"""Key-value caches as tensors: pad, stack and join them, so that calls can enter a batch that is under way.

Everything is padded on the left, with a mask [batch, tokens] of 1 for tokens that count. Positions are counted over the
mask, so padding may also lie in the middle of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a model has read of one row: its token ids and, by layer, keys and values [heads, tokens, size]."""

    ids: list[int]
    layers: list[tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def taken(cls, cache: Any, row: int, mask: torch.Tensor, ids: list[int]) -> Self:
        """A copy of one row of a cache, without its padding. `mask` [tokens] is that row's."""
        real = mask.bool()
        return cls(ids, [(layer.keys[row][:, real], layer.values[row][:, real]) for layer in cache.layers])


def prefix_of(kept: Sequence[Prefix], ids: Sequence[int]) -> Prefix:
    """The most of one of `kept` that `ids` begin with; never all of `ids`, since a model has to read something."""
    same, best = max(((_shared(one.ids, ids[:-1]), one) for one in kept), key=lambda one: one[0], default=(0, None))
    if best is None or same == 0:
        return Prefix([], [])
    return Prefix(best.ids[:same], [(keys[:, :same], values[:, :same]) for keys, values in best.layers])


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [batch, longest] padded on the left, and their mask."""
    longest = max(len(row) for row in rows)
    ids = [[0] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device, dtype=torch.long), torch.tensor(mask, device=device, dtype=torch.long)


def stacked(prefixes: Sequence[Prefix], device: torch.device) -> tuple[Any, torch.Tensor]:
    """One cache of several prefixes, and its mask; no cache if all of them are empty."""
    from transformers import DynamicCache

    longest = max(len(prefix.ids) for prefix in prefixes)
    _, mask = padded([prefix.ids for prefix in prefixes], device)
    if longest == 0:
        return None, mask
    cache: Any = DynamicCache()
    like = next(prefix.layers for prefix in prefixes if prefix.layers)
    for number, (some_keys, some_values) in enumerate(like):
        none = (some_keys[:, :0], some_values[:, :0])
        pairs = [prefix.layers[number] if prefix.layers else none for prefix in prefixes]
        keys, values = (torch.stack([_widened(pair[part], longest) for pair in pairs]) for part in (0, 1))
        cache.update(keys, values, number)
    return cache, mask


def join(cache: Any, mask: torch.Tensor | None, new: Any, new_mask: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The rows of `new` behind the rows of `cache`, without padding that all of them share."""
    if cache is None or mask is None:
        return new, new_mask
    longest = max(mask.shape[1], new_mask.shape[1])
    joined = torch.cat([pad(one, (longest - one.shape[1], 0)) for one in (mask, new_mask)])
    spare = int(joined.bool().any(dim=0).int().argmax())
    for layer, other in zip(cache.layers, new.layers, strict=True):
        layer.keys = torch.cat([_widened(layer.keys, longest), _widened(other.keys, longest)])[..., spare:, :]
        layer.values = torch.cat([_widened(layer.values, longest), _widened(other.values, longest)])[..., spare:, :]
    return cache, joined[:, spare:]


def _widened(tensor: torch.Tensor, tokens: int) -> torch.Tensor:
    return pad(tensor, (0, 0, tokens - tensor.shape[-2], 0))
