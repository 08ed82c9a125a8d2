"""`Usage`: the answers and tokens of each tenant by adapter, since the server began; as many names as are bounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halka.engine import Answer, Request

OTHER = "(other)"  # no adapter's name, which begins with a letter or a digit
FINISHES = ("stop", "length", "cancelled", "error")


@dataclass
class Used:
    """What one adapter, or the base, has answered: prompt tokens count once a request, `cached` are of these."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    answers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FINISHES, 0))


def cached_tokens(answers: Iterable[Answer]) -> int:
    """Tokens of prompts that the cache had, counted as prompts are: once a request, by its first answer."""
    cached: dict[int, int] = {}
    for answer in answers:
        cached.setdefault(id(answer.request), answer.cached)
    return sum(cached.values())


class Usage:
    """Counts what has ended. adapters: the most of a tenant that are counted by their names."""

    def __init__(self, adapters: int):
        self._most = adapters
        self._tenants = defaultdict[str, dict[str | None, Used]](dict)

    def count(self, request: Request, n: int, answers: Collection[Answer]) -> None:
        """Count a request of `n` answers, of which these have begun."""
        used = self._used(request.tenant, request.adapter and request.adapter.partition("/")[2])
        used.requests += 1
        used.prompt_tokens += len(request.prompt)
        used.cached_tokens += cached_tokens(answers)
        used.answers["cancelled"] += n - len(answers)
        for answer in answers:
            used.answers[answer.finish or "cancelled"] += 1
            used.completion_tokens += len(answer.tokens)

    def of(self, tenant: str) -> list[dict[str, Any]]:
        """What a tenant's adapters have answered, by name; the base has none."""
        used = self._tenants.get(tenant, {})
        return [{"adapter": name, **asdict(one)} for name, one in sorted(used.items(), key=lambda pair: pair[0] or "")]

    def tenants(self) -> list[str]:
        return sorted(self._tenants)

    def _used(self, tenant: str, adapter: str | None) -> Used:
        used = self._tenants[tenant]
        if adapter is not None and adapter not in used and len(used) >= self._most:
            adapter = OTHER
        return used.setdefault(adapter, Used())
