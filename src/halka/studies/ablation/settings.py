"""An ablation's settings: documents, questions, form of answers, training; its YAML file (docs/rag.md)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from halka.data.task import SPLITS
from halka.rag import PASSAGES
from halka.rag.collection import Collection
from halka.rag.embed import SentenceEmbedder
from halka.rag.prompt import ANSWER
from halka.rag.questions import Asked, read_questions
from halka.rag.raft import Distractors, Order, Raft
from halka.studies.experiment import BySplit, Count, Entry, Precision, Rate, Seeds, Settings, TrainFields, read_settings
from halka.util.errors import HalkaError

Who = Literal["base", "adapter", "tuned", "full", "tuned-full"]
FULL: tuple[Who, ...] = ("full", "tuned-full")


class Lessons(Settings):
    """How questions become training examples with passages (RAFT): what `Raft` takes beside `without`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    passages: Count | None = Field(default=None, description="in a training prompt; as many as in the test's if none")
    order: Order = "shuffled"
    distractors: Distractors = "nearest"
    changed: Annotated[float, Field(ge=0, le=1)] = 0.0
    shared: bool = False
    draws: Count = 1


class Ablation(Settings):
    """Which questions on which documents a base, an adapter and an adapter tuned for passages answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    base: str = "smollm2-135m"
    dtype: Precision = "bfloat16"
    documents: tuple[str, ...] = Field(min_length=1, description='files and folders; .jsonl: rows of "name", "text"')
    embedder: str | None = Field(default=None, description="a folder or a name on the hub; MiniLM if not given")
    questions: dict[str, str] = Field(description="files of train, validation and test")
    examples: BySplit = Field(default={})
    form: str = Field(default=ANSWER, description="how an answer is to look, with {answer} where it stands")
    instruction: str = Field(default="", description="the form in words, for the base, which has not learned it")
    passages: Count = PASSAGES
    without: Annotated[float, Field(ge=0, lt=1)] = 0.2
    lessons: Lessons = Field(default=Lessons(), description="how those that are tuned for passages are trained")
    method: Entry = Entry(method="lora", label="LoRA")
    full_lr: Rate | None = Field(default=None, description="full fine-tuning beside the adapter, at this rate")
    train: TrainFields = Field(default={}, description="as for `halka train`, without lr and seed")
    arms: tuple[Who, ...] = Field(default=(), description="who answers; all that can, if none is named")
    seeds: Seeds = (0, 1, 2)
    jobs: Annotated[int, Field(ge=1, description="runs at a time, each in a process of its own if more than one")] = 1
    max_new_tokens: Count = 48
    injections: Annotated[int, Field(ge=0, description="questions whose passages get an attack put in")] = 24
    changes: Annotated[int, Field(ge=0, description="answers that are changed in their documents")] = 20

    _folder: Path = PrivateAttr(Path())

    @property
    def folder(self) -> Path:
        """The folder of the ablation's file."""
        return self._folder

    def at(self, folder: Path) -> Ablation:
        """The ablation, as if its file was in `folder`."""
        moved = self.model_copy()
        moved._folder = folder
        return moved

    def place(self, name: str) -> str:
        """A base's or an embedder's path where it is a folder beside the ablation's file; else the name itself."""
        near = self._folder / Path(name).expanduser()
        return str(near.resolve()) if near.is_dir() else name

    @model_validator(mode="after")
    def _fits(self) -> Ablation:
        if self.questions.keys() != {*SPLITS}:
            raise HalkaError(f"questions: name a file for each of {', '.join(SPLITS)}")
        self.raft(0, self.lessons)  # raises for a form without {answer}, and for lessons that do not go together
        if self.method.method == "base" or len(self.method.lrs) > 1:
            raise HalkaError("method: an adapter's, with one learning rate (lrs) or none")
        if self.method.train:
            raise HalkaError("method: an ablation trains all alike: say train beside method, not in it")
        if self.method.quantize is not None:
            raise HalkaError("method: an ablation's base is one for all arms, and not quantised: leave quantize out")
        if self.method.text is not None:
            raise HalkaError("method: in an ablation, virtual tokens do not start as a text: leave text out")
        if len({*self.arms}) < len(self.arms):
            raise HalkaError("arms: name none twice")
        if self.full_lr is None and (rateless := {*self.arms} & {*FULL}):
            raise HalkaError(f"arms: {', '.join(sorted(rateless))} needs full_lr, the rate of full fine-tuning")
        return self

    @property
    def answerers(self) -> tuple[Who, ...]:
        """Who answers, the base first."""
        trained: tuple[Who, ...] = ("adapter", "tuned") if self.full_lr is None else ("adapter", "tuned", *FULL)
        return tuple(who for who in ("base", *trained) if who in self.arms or not self.arms)

    def raft(self, seed: int, lessons: Lessons) -> Raft:
        """What makes examples with passages."""
        fields: dict[str, Any] = lessons.model_dump() | {"passages": lessons.passages or self.passages}
        return Raft(**fields, without=self.without, form=self.form, seed=seed)

    @property
    def full(self) -> Entry | None:
        """Full fine-tuning with its rate, where the ablation has it beside the adapter."""
        return None if self.full_lr is None else Entry(method="full", label="full", lrs=(self.full_lr,))


@dataclass(frozen=True)
class Questions:
    """The splits' questions; those without answers are of what the documents do not hold."""

    train: tuple[Asked, ...]
    validation: tuple[Asked, ...]
    test: tuple[Asked, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]


def read_ablation(path: str | Path) -> Ablation:
    """Read an ablation from its YAML file; the paths in it are relative to its folder.

    Base and embedder stay as they are written, and `Ablation.place` says where they are.
    Raises HalkaError naming the file, each wrong key, and a path that does not exist.
    """
    path = Path(path)
    return beside(read_settings(path, Ablation, "it needs at least name, documents and questions"), path)


def beside(ablation: Ablation, path: Path) -> Ablation:
    """The ablation with absolute paths: those in it are relative to the folder of the file `path`.

    Raises HalkaError for one that does not exist.
    """

    def whole(name: str) -> str:
        place = (path.parent / Path(name).expanduser()).resolve()
        if not place.exists():
            raise HalkaError(f"{path}: there is no {place}")
        return str(place)

    paths = {
        "documents": tuple(map(whole, ablation.documents)),
        "questions": {split: whole(name) for split, name in ablation.questions.items()},
    }
    return ablation.model_copy(update=paths).at(path.parent)


def questions_of(ablation: Ablation) -> Questions:
    """Read the ablation's questions, as many of each split as it wants.

    Raises HalkaError for a row that is no question, and for a split without questions that have answers.
    """
    splits = {}
    for split, path in ablation.questions.items():
        splits[split] = tuple(read_questions(Path(path))[: ablation.examples.get(split)])
        if not any(asked.answers for asked in splits[split]):
            raise HalkaError(f"{path}: no question with an answer")
    return Questions(**splits)


def collection_of(ablation: Ablation, folder: Path) -> Collection:
    """The collection of the ablation's documents in its study's folder; vectors of another embedder have another."""
    if ablation.embedder is None:
        return Collection(folder / "collection")
    own = hashlib.sha256(ablation.embedder.encode()).hexdigest()[:8]
    return Collection(folder / f"collection-{own}", SentenceEmbedder(ablation.place(ablation.embedder)))


def matcher(template: str) -> re.Pattern[str]:
    """The pattern of an answer by this template with its citations; its group is the answer itself.

    That may have several lines, but no empty one, behind which something else begins, and none that begins as the
    template does: it would be a second answer.
    """
    before, after = map(re.escape, template.split(ANSWER))
    end = rf"\n\s*\n|\n{before}" if before else r"\n\s*\n"
    return re.compile(rf"{before}((?:(?!{end}).)+?){after}(?:\s*\[\d{{1,3}}\])*\s*", re.DOTALL)
