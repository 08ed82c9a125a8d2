"""What the gateway and a replica say to one another, as JSON: a `Call`, the `Reply`s that follow, a `State`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from halka.engine import Constraint, Request, Sampling, Stopping
from halka.engine.logprobs import TokenLogprob
from halka.server.backends.growing import Piece
from halka.util.errors import ContextLengthError, HalkaError, OutOfMemoryError, UnknownAdapterError


class Lost(Exception):
    """No reply comes any more, of a replica that died, or of none that there is: why, for the log."""


class EngineFailed(Lost):
    """A replica's engine failed, or has stopped."""


class Hangs(Lost):
    """A replica is there, and says nothing, or its engine makes no step."""


class FilesLost(Lost):
    """A replica cannot get an adapter's files, which the gateway is to put anew."""


KINDS = {kind.__name__: kind for kind in (HalkaError, UnknownAdapterError, ContextLengthError, EngineFailed, FilesLost)}

UNSAID = -1  # positions, of a reply that has no word of them


@dataclass(frozen=True)
class Call:
    """A request for `n` answers, as `AsyncEngine.follow` takes it; its adapter is named by its content's id.

    n  0: only the positions that the adapter leaves for a text are asked
    """

    request: Request
    n: int = 1
    pieces: bool = True
    written: Sequence[Sequence[int]] = ()

    @property
    def json(self) -> str:
        request, stopping = self.request, self.request.stopping
        plain = {field.name: getattr(request, field.name) for field in fields(request)}
        plain |= {
            "prompt": [*request.prompt],
            "sampling": {**vars(request.sampling), "bias": [*request.sampling.bias.items()]},
            "stopping": {**vars(stopping), "tokens": sorted(stopping.tokens)},
            "constraint": request.constraint and vars(request.constraint),
        }
        return json.dumps({"request": plain, "n": self.n, "pieces": self.pieces, "written": [*map(list, self.written)]})

    @classmethod
    def of(cls, text: str) -> Call:
        content = json.loads(text)
        plain, constraint = content["request"], content["request"]["constraint"]
        sampling, stopping = plain["sampling"], plain["stopping"]
        plain |= {
            "sampling": Sampling(**{**sampling, "bias": dict(sampling["bias"])}),
            "stopping": Stopping(
                **{**stopping, "strings": tuple(stopping["strings"]), "tokens": frozenset(stopping["tokens"])}
            ),
            "constraint": constraint and Constraint(**constraint),
        }
        return cls(Request(**plain), content["n"], content["pieces"], content["written"])


@dataclass(frozen=True)
class Reply:
    """What a replica says; the first has `replica` and `held`, each other a piece, the room, an error, or it is a beat.

    replica  the replica's name
    held     whether the adapter was in its memory when the call came; None: that does not count
    piece    what one of the answers has more
    cached   tokens of the prompt that its cache had
    room     positions for a text, where that was asked; None: no end, `UNSAID` in every other reply
    stalled  whether its engine makes no step, in the first and in a beat
    error    why it failed: the kind of error, and its message
    """

    replica: str | None = None
    held: bool | None = None
    piece: Piece | None = None
    cached: int = 0
    room: int | None = UNSAID
    stalled: bool = False
    error: tuple[str, str] | None = None

    @property
    def json(self) -> str:
        unlike = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        return json.dumps({name: value for name, value in asdict(self).items() if name in unlike})

    @classmethod
    def of(cls, text: str) -> Reply:
        content = json.loads(text)
        if (piece := content.get("piece")) is not None:
            logprobs = [TokenLogprob(**{**entry, "top": _pairs(entry)}) for entry in piece["logprobs"]]
            content["piece"] = Piece(**{**piece, "logprobs": logprobs})
        return cls(**content)

    @classmethod
    def failed(cls, error: Exception) -> Reply:
        """The reply of a replica that this happened to: what is no error of the request's is its engine's."""
        kinds = (UnknownAdapterError, ContextLengthError, HalkaError, FilesLost)
        for kind in () if isinstance(error, OutOfMemoryError) else kinds:
            if isinstance(error, kind):
                return cls(error=(kind.__name__, str(error)))
        return cls(error=(EngineFailed.__name__, f"{type(error).__name__}: {error}"))

    def raise_error(self, names: Mapping[str, str]) -> None:
        """Raise its error, if it has one, with names in the place of contents' ids: HalkaError, or Lost."""
        if self.error is not None:
            kind, message = self.error
            for id, name in names.items():
                message = message.replace(id, name)
            raise KINDS[kind](message)


@dataclass(frozen=True)
class State:
    """What a replica says of itself.

    pid        its process, on its node
    holds      the ids of the adapters in its memory
    running    answers that have a row; waiting: that wait for one
    loads      how many adapters it has loaded, and evictions how many it has evicted
    stalled    whether its engine makes no step
    """

    name: str
    pid: int = 0
    holds: Sequence[str] = ()
    running: int = 0
    waiting: int = 0
    loads: int = 0
    evictions: int = 0
    stalled: bool = False

    @property
    def json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, text: str) -> State:
        return cls(**json.loads(text))


def _pairs(entry: Mapping[str, Any]) -> tuple[tuple[int, float], ...]:
    return tuple((token, logprob) for token, logprob in entry["top"])
