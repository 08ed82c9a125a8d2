"""`Job`: an adapter to be trained, and its examples; `EncodedJob`: the same with tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from halka.core import AdaptedModel
from halka.data.chat import writes_time, written_at
from halka.data.examples import ExamplesOrItems, Item, common_system
from halka.storage.adapter_folder import AdapterFolder
from halka.training.config import TrainConfig, config_of
from halka.training.data import as_tokens
from halka.training.ranks import Ranks
from halka.training.run_folder import RunFolder
from halka.util.divided import checked_by_first


@dataclass(frozen=True)
class Job:
    """One of the adapters that `train_many` trains: the arguments of `train`; `config` may be a dict there, too.

    written   when texts are, or were, written, where the chat template writes the time; None: when the run in the
              folder began, if one is under way there, else now
    start     the adapter that was loaded under `name`, which the run and its Card remember
    """

    name: str
    examples: ExamplesOrItems
    config: TrainConfig = field(default_factory=TrainConfig)
    validation: ExamplesOrItems = ()
    folder: str | Path | None = None
    score: Callable[[], float] | None = None
    written: datetime | None = None
    start: AdapterFolder | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", config_of(self.config))


@dataclass(frozen=True)
class EncodedJob(Job):
    """A job whose examples are tokens; `system` is the message that all of them began with."""

    examples: list[Item]
    validation: list[Item] = field(default_factory=list[Item])
    system: str = ""


def encoded(model: AdaptedModel, job: Job) -> EncodedJob:
    """The job with its examples as tokens. Where several processes train together, all call this.

    Raises as `as_tokens` does, and as the folder does.
    """
    ranks, written = Ranks.here(), job.written
    if written is None and job.folder is not None:
        written = ranks.from_first(checked_by_first(RunFolder(job.folder).written))
    written = written or ranks.from_first(datetime.now())
    with written_at(written):
        items = as_tokens(model, job.examples, job.config, job.name)
        held_out = as_tokens(model, job.validation, job.config, job.name) if job.validation else []
    dated = model.tokenizer is not None and writes_time(model.tokenizer)
    return EncodedJob(
        name=job.name,
        examples=items,
        config=job.config,
        validation=held_out,
        folder=job.folder,
        score=job.score,
        written=written if dated else None,
        start=job.start,
        system=common_system(job.examples),
    )
