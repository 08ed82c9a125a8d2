"""`Waiting`: the texts that wait for a row, and whose turn it is.

Tokens are counted, by tenant and within a tenant by adapter; the one with the fewest is next, and its texts in the
order in which they came. Who comes back after a pause starts with the count of the least served, so that nobody saves
up. So whoever waits is served after a bounded number of tokens (virtual token counters: Sheng et al. 2024,
arXiv 2401.00588).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator

from halka.engine.text import Text
from halka.engine.version import Version

WRITTEN = 2  # what a token of an answer costs, where one that is read costs 1


class _Counts:
    """Tokens by name, of those that have texts under way, and of others that are ahead of all these."""

    def __init__(self) -> None:
        self.of: dict[str | None, float] = {}
        self.texts = Counter[str | None]()  # that wait or run

    def enter(self, name: str | None) -> None:
        """A text of its waits or runs from now on."""
        if not self.texts[name]:
            self.of[name] = max(self.of.get(name, 0.0), self._least)
        self.texts[name] += 1

    def leave(self, name: str | None) -> None:
        """One does no more."""
        self.texts[name] -= 1
        if not self.texts[name]:
            del self.texts[name]
            least = self._least if self.texts else math.inf
            self.of = {other: count for other, count in self.of.items() if other in self.texts or count > least}

    @property
    def _least(self) -> float:
        return min((self.of[name] for name in self.texts if name in self.of), default=0.0)


class Waiting:
    """Queues by tenant and version of an adapter."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[Version, deque[Text]]] = defaultdict(dict)
        self._tenants = _Counts()
        self._adapters: dict[str, _Counts] = defaultdict(_Counts)

    def __iter__(self) -> Iterator[Text]:
        """Iterate over all waiting texts."""
        return (text for queues in self._queues.values() for queue in queues.values() for text in queue)

    def __len__(self) -> int:
        return sum(len(queue) for queues in self._queues.values() for queue in queues.values())

    def firsts(self) -> Iterator[Text]:
        """The first text of each version, tenant by tenant: the least served first, of equals who asks for less."""
        for tenant in sorted(self._queues, key=self.turn):
            counts = self._adapters[tenant].of
            firsts = [queue[0] for queue in self._queues[tenant].values()]
            yield from sorted(firsts, key=lambda text: (counts[text.answer.request.adapter], text.number))

    def turn(self, tenant: str | None) -> tuple[float, int]:
        """How many tokens a tenant has had, and how many texts: who has the lowest numbers is next."""
        return self._tenants.of[tenant], self.demand(tenant)

    def demand(self, tenant: str | None) -> int:
        """How many of its texts wait or run."""
        return self._tenants.texts[tenant]

    @property
    def greediest(self) -> str | None:
        """The tenant with the most texts; None if there are none."""
        return max(self._tenants.texts, key=self.demand, default=None)

    def enter(self, text: Text) -> None:
        """It has come and waits."""
        tenant, adapter = _owner(text)
        self._tenants.enter(tenant)
        self._adapters[tenant].enter(adapter)
        self._queues[tenant].setdefault(text.version, deque()).append(text)

    def leave(self, text: Text) -> None:
        """It is finished, or given up."""
        tenant, adapter = _owner(text)
        if text in self._queues.get(tenant, {}).get(text.version, ()):
            self._remove(text)
        self._tenants.leave(tenant)
        self._adapters[tenant].leave(adapter)
        if not self._tenants.texts[tenant]:
            del self._adapters[tenant]

    def put_back(self, text: Text) -> None:
        """It lost its row, and is the first of its adapter's to get one."""
        self._queues[text.tenant].setdefault(text.version, deque()).appendleft(text)

    def take(self, ready: Callable[[Text], bool]) -> Text | None:
        """The next that can have a row, which waits no more."""
        text = next((text for text in self.firsts() if ready(text)), None)
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
        return len(self._tenants.texts)

    def _remove(self, text: Text) -> None:
        tenant = text.tenant
        queues = self._queues[tenant]
        queues[text.version].remove(text)
        if not queues[text.version]:
            del queues[text.version]
        if not queues:
            del self._queues[tenant]


def _owner(text: Text) -> tuple[str, str | None]:
    return text.tenant, text.answer.request.adapter
