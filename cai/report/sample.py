"""Which rows the report shows: a bounded sample over every kind of row, the same each time."""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

ROWS = 300


@dataclass(slots=True)
class Sample:
    """Of each kind of row those with the lowest hashes of their ids, so that equal runs show equal rows, and a run that
    has grown shows most of the same. Holds at most `limit` ids of each kind, however many rows are offered."""

    limit: int = ROWS
    _kinds: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    _highest: dict[str, list[int]] = field(default_factory=dict[str, list[int]])

    def offer(self, row_id: str, kinds: Iterable[str]) -> None:
        """A row and all that it is an example of."""
        place = _place(row_id)
        for kind in kinds if self.limit else ():
            kept, heap = self._kinds.setdefault(kind, {}), self._highest.setdefault(kind, [])
            if place in kept:
                continue
            if len(kept) >= self.limit:
                if place > -heap[0]:  # heapq has the smallest at hand, and it is the highest that has to go
                    continue
                del kept[-heapq.heappop(heap)]
            kept[place] = row_id
            heapq.heappush(heap, -place)

    def chosen(self) -> set[str]:
        """The ids: one of each kind in turn, until there are `limit` or no more."""
        queues = [[row_id for _, row_id in sorted(self._kinds[kind].items())] for kind in sorted(self._kinds)]
        found: set[str] = set()
        for turn in range(max(map(len, queues), default=0)):
            for queue in queues:
                if turn < len(queue) and len(found) < self.limit:
                    found.add(queue[turn])
        return found


def lowest(row_ids: Iterable[str], count: int) -> list[str]:
    """The `count` ids with the lowest hashes."""
    return heapq.nsmallest(count, row_ids, key=_place)


def _place(row_id: str) -> int:
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:8])
