"""`Waiting`: the texts that wait for a row, and whose turn it is.

Tokens are counted, by tenant and within a tenant by adapter; the one with the fewest is next, and its texts in the
order in which they came. Who comes back after a pause starts with the count of the least served, so that nobody saves
up. So whoever waits is served after a bounded number of tokens (virtual token counters: Sheng et al. 2024,
arXiv 2401.00588).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator

from halka.engine.text import Text

WRITTEN = 2  # what a token of an answer costs, where one that is read costs 1


class _Counts:
    """Tokens by name, among those that are active."""

    def __init__(self) -> None:
        self.of: dict[str | None, float] = {}

    def enter(self, name: str | None, active: set[str | None]) -> None:
        """It waits or runs from now on, beside those that do."""
        if name not in active:
            least = min((self.of.get(other, 0.0) for other in active), default=0.0)
            self.of[name] = max(self.of.get(name, 0.0), least)


class Waiting:
    """Queues by tenant and adapter."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[str | None, deque[Text]]] = defaultdict(lambda: defaultdict(deque))
        self._tenants = _Counts()
        self._adapters: dict[str, _Counts] = defaultdict(_Counts)
        self._under_way: dict[tuple[str, str | None], int] = defaultdict(int)  # texts that wait or run

    def __iter__(self) -> Iterator[Text]:
        """Those that wait, tenant by tenant, the least served first."""
        for tenant in sorted(self._queues, key=lambda tenant: self._tenants.of[tenant]):
            counts, queues = self._adapters[tenant], self._queues[tenant]
            for adapter in sorted(queues, key=lambda adapter: counts.of[adapter]):
                yield from queues[adapter]

    def __len__(self) -> int:
        return sum(len(queue) for queues in self._queues.values() for queue in queues.values())

    def enter(self, text: Text) -> None:
        """It has come and waits."""
        tenant, adapter = _owner(text)
        self._tenants.enter(tenant, {tenant for (tenant, _), count in self._under_way.items() if count})
        mine = {other for (owner, other), count in self._under_way.items() if count and owner == tenant}
        self._adapters[tenant].enter(adapter, mine)
        self._under_way[tenant, adapter] += 1
        self._queues[tenant][adapter].append(text)

    def leave(self, text: Text) -> None:
        """It is finished, or given up."""
        tenant, adapter = _owner(text)
        self._under_way[tenant, adapter] -= 1
        self._remove(text)
        if not self._under_way[tenant, adapter]:
            del self._under_way[tenant, adapter]

    def put_back(self, text: Text) -> None:
        """It lost its row, and is the first of its adapter's to get one."""
        tenant, adapter = _owner(text)
        self._queues[tenant][adapter].appendleft(text)

    def take(self, ready: Callable[[Text], bool]) -> Text | None:
        """The next that can have a row, which waits no more."""
        text = next((text for text in self if ready(text)), None)
        if text is not None:
            self._remove(text)
        return text

    def charge(self, text: Text, tokens: int) -> None:
        """So many tokens were computed for it."""
        tenant, adapter = _owner(text)
        self._tenants.of[tenant] += tokens
        self._adapters[tenant].of[adapter] += tokens

    @property
    def tenants(self) -> int:
        """How many tenants have texts that wait or run."""
        return len({tenant for tenant, _ in self._under_way})

    def _remove(self, text: Text) -> None:
        tenant, adapter = _owner(text)
        queues = self._queues[tenant]
        if text in queues[adapter]:
            queues[adapter].remove(text)
        if not queues[adapter]:
            del queues[adapter]
        if not queues:
            del self._queues[tenant]


def _owner(text: Text) -> tuple[str, str | None]:
    return text.answer.request.tenant, text.answer.request.adapter
