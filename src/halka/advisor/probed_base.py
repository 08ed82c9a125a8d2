"""`ProbedBase`: the base model with the user's examples and documents, as every probe prompts it.

There are four ways to prompt it: the question alone, after worked examples, with retrieved passages, with both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from halka.advisor import words
from halka.advisor.advice_folder import COLLECTION
from halka.advisor.budget import FEWEST, Budget, WorkPlan
from halka.advisor.evidence import BOTH, CLOSED, CONDITIONS, DOCUMENTS, EXAMPLES, Condition
from halka.advisor.request import Request, Sample
from halka.advisor.statistics import answer_values
from halka.core import AdaptedModel
from halka.data.batches import Batch, plan_packed
from halka.data.examples import Example, Message
from halka.data.readers import Problem
from halka.data.tokens import Tokens, encode, encode_all, encode_prompt
from halka.evaluation.accepted import accepted_answers, longest_answer, texts_of, too_long
from halka.evaluation.generation import AdapterNames, answers_of
from halka.evaluation.streaming import user_message
from halka.models import adapt, context, without_dropout
from halka.models.attention.function import use_attention
from halka.models.kinds import usual_kind
from halka.models.layouts import LAYOUTS
from halka.models.loading import base_config, load_base
from halka.objectives import batch_of, packs
from halka.objectives.language_modelling import LanguageModelling
from halka.rag.collection import Collection
from halka.rag.passages import Passage
from halka.rag.prompt import prompted
from halka.rag.retrieve import Retriever
from halka.rag.sources import listed, taken_in
from halka.util.errors import DataError, HalkaError

BATCH, BATCH_TOKENS = 16, 8192  # answers at a time; tokens that a batch computes whose losses are wanted
SHOTS = {CLOSED: 0, EXAMPLES: 4, DOCUMENTS: 0, BOTH: 2}  # fewer with passages, as each worked example brings its own

REPORTED = 50  # examples after which progress is reported
NO_QUESTION = "no user message before the answer: add one"

TokenLosses = tuple[list[int], np.ndarray]
"""Token ids of an answer, and the loss of each in nats."""

Retrieve = Callable[[str], Sequence[Passage]]
"""Maps a question to the passages that may answer it."""

Report = Callable[[str], None]
"""Called with what a stage does."""

Progress = Callable[[str, str], None]
"""Called with a stage and what it does."""


@dataclass(frozen=True)
class Computed:
    """What the base was asked already, by condition: losses and answers of the first held-out examples."""

    losses: dict[str, list[TokenLosses]] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def without_passages(self) -> Computed:
        """What prompts without passages gave."""
        plain = (CLOSED, EXAMPLES)
        losses = {condition: own for condition, own in self.losses.items() if condition in plain}
        return Computed(losses, {condition: own for condition, own in self.answers.items() if condition in plain})


@dataclass(frozen=True)
class ProbedBase:
    """The base, the examples it is prompted with, and what retrieves passages, where there are documents.

    passages   the most that a prompt has
    asked      conditions that there is time for
    """

    model: AdaptedModel
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    metric: str
    max_new_tokens: int
    retrieve: Retrieve | None = None
    passages: int = 0
    asked: tuple[Condition, ...] = CONDITIONS
    computed: Computed = field(default_factory=lambda: Computed(), repr=False, compare=False)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Kinds of prompts that can be tried: those with passages need documents."""
        possible: tuple[Condition, ...] = (CLOSED, EXAMPLES) if self.retrieve is None else CONDITIONS
        return tuple(condition for condition in possible if condition in self.asked)

    def first(self, count: int) -> ProbedBase:
        """The base with the first `count` held-out examples alone."""
        return replace(self, held_out=self.held_out[:count])

    def planned(self, plan: WorkPlan) -> ProbedBase:
        """With the plan's held-out examples, conditions, and passages in a prompt."""
        base, retrieve = replace(self.first(plan.held_out), asked=plan.conditions), self.retrieve
        if retrieve is None or plan.passages == base.passages:
            return base
        fewer: Retrieve = lambda question: retrieve(question)[: plan.passages]  # noqa: E731
        return replace(base, retrieve=fewer, passages=plan.passages, computed=base.computed.without_passages())

    # ── prompts ─────────────────────────────────────────────────────────────────────────────────────────────────

    def prompt(self, example: Example, condition: str) -> Example:
        """The example as it is prompted, with as many worked examples, and then passages, as fit into the context.

        Worked examples that the chat template rewrites as earlier answers are left out, too.
        """
        shots = self.train[: SHOTS[condition]]
        passages = self.retrieve(question_of(example)) if self.retrieve and condition in (DOCUMENTS, BOTH) else None
        ways = [(count, passages) for count in range(len(shots), 0, -1)]
        ways += [(0, passages and passages[:count]) for count in range(len(passages or ()), -1, -1)]
        prompt = example
        for count, shown in ways:
            prompt = self._prompt(example, shots[:count], shown)
            with suppress(DataError):
                if self.fits(prompt):
                    break
        return prompt

    def prompts(self, condition: str) -> list[Example]:
        """The held-out examples as they are prompted."""
        return [self.prompt(example, condition) for example in self.held_out]

    def prompts_with_passages(
        self, examples: Sequence[Example], progress: Report = lambda _: None
    ) -> Iterator[Example]:
        """The examples prompted with passages, without those that the base cannot be prompted with."""
        kept, _ = usable_examples(self.model, examples)
        for number, index in enumerate(kept, start=1):
            yield self.prompt(examples[index], DOCUMENTS)
            if number % REPORTED == 0 or number == len(kept):
                progress(f"retrieved passages for {number} of {len(kept)} examples")

    def _prompt(self, example: Example, shots: Sequence[Example], passages: Sequence[Passage] | None) -> Example:
        if passages is None:
            return build_prompt(self.model, example, shots)
        assert self.retrieve is not None
        retrieved = {question_of(shot): self.retrieve(question_of(shot)) for shot in shots}
        retrieved[question_of(example)] = passages
        return build_prompt(self.model, example, shots, retrieved.__getitem__)

    def fits(self, prompt: Example) -> bool:
        """Whether the base's context holds the prompt with its answer, and with `max_new_tokens`."""
        limit, tokenizer = context(self.model, None), self.model.tokenizer
        generated = len(encode_prompt(prompt, tokenizer)) + self.max_new_tokens
        return limit is None or max(len(encode(prompt, tokenizer)), generated) <= limit

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────

    def answers(self, adapters: AdapterNames, prompts: Sequence[Example]) -> list[str]:
        """What the base, an adapter, or an adapter per prompt answers."""
        return answers_of(self.model, adapters, prompts, max_new_tokens=self.max_new_tokens, batch_size=BATCH)

    def base_answers(self, condition: Condition, budget: Budget, progress: Report = lambda _: None) -> list[str]:
        """What the base answers to the held-out examples, as many as there is time for; computed once a condition.

        As many as are a score come before what follows: fewer would be time for nothing.
        """
        texts, total = self.computed.answers.setdefault(condition, []), len(self.held_out)
        reserve = budget.reserve(condition, answers=True)
        for portion in budget.portions(budget.costs.answers, condition, len(texts), total, reserve, first=FEWEST):
            prompts = [self.prompt(self.held_out[index], condition) for index in portion]
            texts += self.answers(None, prompts)
            progress(f"answers, {condition}: {len(texts)} of {total}")
        budget.cut(f"answers, {words.CONDITIONS[condition]},", len(texts), total)
        return texts[:total]

    @cached_property
    def references(self) -> list[tuple[str, ...]]:
        """Accepted answers of the held-out examples; those that call tools as the base's chat template writes them."""
        if not any(example.messages[-1].calls for example in self.held_out):
            return [example.answers for example in self.held_out]
        return texts_of(accepted_answers(self.model, self.held_out))

    def values(self, texts: Sequence[str], condition: str = CLOSED) -> tuple[float, ...]:
        """Values of answers to the first held-out examples, as they were prompted."""
        return answer_values(self.metric, texts, self.references[: len(texts)], passages=condition in (DOCUMENTS, BOTH))

    # ── losses ──────────────────────────────────────────────────────────────────────────────────────────────────

    def base_losses(self, condition: Condition, budget: Budget) -> list[TokenLosses]:
        """The base's losses of the held-out answers, as many as there is time for; computed once a condition."""
        losses, total = self.computed.losses.setdefault(condition, []), len(self.held_out)
        reserve = budget.reserve(condition, answers=False)
        for portion in budget.portions(budget.costs.losses, condition, len(losses), total, reserve):
            losses += self.losses(None, [self.prompt(self.held_out[index], condition) for index in portion])
        budget.cut(f"losses, {words.CONDITIONS[condition]},", len(losses), total)
        return losses[:total]

    def losses(self, adapter: str | None, prompts: Sequence[Example]) -> list[TokenLosses]:
        """Losses of each example's last answer."""
        return token_losses(self.model, adapter, [self.tokens(prompt) for prompt in prompts])

    def answer_ids(self, example: Example) -> list[int]:
        """Token ids of its last answer, with the end-of-turn token."""
        tokens = self.tokens(example)
        return [token for token, counts in zip(tokens.ids, tokens.loss, strict=True) if counts]

    def tokens(self, example: Example) -> Tokens:
        """Its tokens with loss on the last answer alone, cut at the front to the base's context."""
        tokens = encode(example, self.model.tokenizer)
        start = len(encode_prompt(example, self.model.tokenizer))
        loss = [False] * start + tokens.loss[start:]
        limit = context(self.model, None)
        excess = 0 if limit is None else max(0, len(loss) - limit)
        return Tokens(tokens.ids[excess:], loss[excess:])


def token_losses(model: AdaptedModel, adapter: str | None, items: Sequence[Tokens]) -> list[TokenLosses]:
    """For each item the ids of its labels and the loss of each in nats, in eval mode.

    What prompts of a batch begin with, such as worked examples, is computed once.
    """
    losses: list[TokenLosses] = [([], np.zeros(0))] * len(items)
    objective = LanguageModelling()
    with torch.inference_mode(), model.use(adapter), use_attention(model.base), without_dropout(model, [adapter]):
        if not packs(model):
            for index, item in enumerate(items):
                batch = cast(Batch, batch_of(model, {adapter: [item]}, packed=False))
                own = objective.padded_label_losses(model, adapter, batch)
                labels = [token for token, loss in zip(item.ids[1:], item.loss[1:], strict=True) if loss]
                losses[index] = (labels, own.cpu().double().numpy())
            return losses
        for indices in plan_packed(items, seed=0, epoch=0, batch_tokens=BATCH_TOKENS) if items else ():
            batch = objective.pack(model, [[items[index] for index in indices]])
            losses_M = objective.packed_label_losses(model, [adapter], batch).to(batch.own.device)
            counts = [sum(items[index].loss[1:]) for index in indices]
            for index, own in zip(indices, batch.own.split(counts), strict=True):
                losses[index] = (batch.labels[own].tolist(), losses_M[own].cpu().double().numpy())
    return losses


# ── prompts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def build_prompt(
    model: AdaptedModel, example: Example, shots: Sequence[Example] = (), retrieve: Retrieve | None = None
) -> Example:
    """The example with `shots` as earlier turns, and every question preceded by its retrieved passages.

    For a base without a chat template the turns are joined into one text.
    Raises DataError for an example without a user message.
    """
    asked = [_with_passages(model, shot, retrieve) for shot in (*shots, example)]
    setting = ("system", "tools")
    system = [message for message in example.prompt if message.role in setting]
    turns = [message for shot in asked for message in shot.messages if message.role not in setting]
    if model.tokenizer.chat_template is None and shots:
        answer = turns.pop() if example.messages[-1].role == "assistant" else None
        text = "\n".join(
            f"{message.content}\n" if message.role == "assistant" else message.content for message in turns
        )
        turns = [Message("user", f"{text}\n"), *([] if answer is None else [answer])]
    return Example((*system, *turns), example.references, example.where)


def usable_examples(model: AdaptedModel, examples: Sequence[Example]) -> tuple[list[int], list[Problem]]:
    """Indices of the examples that the base can be prompted with, and problems of the others.

    Usable is an example that the chat template accepts, whose answer begins within the base's context, and that has a
    user message. Raises DataError where none is left.
    """
    encoded = encode_all(examples, model.tokenizer, context(model, None))
    usable = [index for index in encoded.kept if any(message.role == "user" for message in examples[index].prompt)]
    silent = sorted({*encoded.kept} - {*usable})
    places = [examples[index].where or f"example {index + 1}" for index in silent]
    problems = [*encoded.problems, *(Problem(place, NO_QUESTION) for place in places)]
    if not usable:
        raise DataError(f"none of {len(examples)} examples can be used. {problems[0]}")
    return usable, problems


def question_of(example: Example) -> str:
    """The last user message. Raises DataError where there is none."""
    for message in reversed(example.prompt):
        if message.role == "user":
            return message.content
    raise DataError(f"{example.where or 'an example'}: {NO_QUESTION}")


def _with_passages(model: AdaptedModel, example: Example, retrieve: Retrieve | None) -> Example:
    question = question_of(example)
    if retrieve is None:
        return example
    last = max(number for number, message in enumerate(example.prompt) if message.role == "user")
    asked = user_message(model, prompted(question, retrieve(question)))
    return Example((*example.messages[:last], asked, *example.messages[last + 1 :]), example.references, example.where)


# ── opening ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def decoder_config(base: str) -> Any:
    """The configuration of a causal language model. Raises HalkaError for another model, and as `base_config` does."""
    config = base_config(base)
    layout = LAYOUTS.get(config.model_type)
    if usual_kind(config) != "causal-lm" or (layout is not None and not layout.causal):
        raise HalkaError(f"{base} is no causal language model: the advisor needs one that generates text")
    return config


def open_base(
    request: Request, sample: Sample, folder: Path, progress: Progress
) -> tuple[ProbedBase, int, dict[str, str]]:
    """Load the base, index the documents, and answer and retrieve once, so that what follows can be timed.

    Returns the base, the number of documents, and what cannot be used, with the reason.
    Raises DataError where no example is left, and as `load_base` does.
    """
    missing: dict[str, str] = {}
    if sample.unscored:
        missing["examples without a score"] = (
            f"{sample.unscored} held-out ones, of whose answers {sample.metric} says nothing"
        )
    progress("base", f"loading {request.base}")
    model = adapt(*load_base(request.base, dtype=request.dtype, quantize=request.quantize))
    train, held_out = (_usable(model, examples, missing) for examples in (sample.train, sample.held_out))
    retrieve, documents = _retrieval(request, folder, missing, progress) if request.documents else (None, 0)
    new = _answer_room(model, held_out, request.max_new_tokens, missing)
    base = ProbedBase(model, train, held_out, sample.metric, new, retrieve, request.passages if retrieve else 0)
    base = _within_context(base, missing)
    _try_worked_examples(base, missing)
    progress("base", "first answers")  # for which kernels are compiled, and the embedder is loaded
    answers_of(model, None, sorted(base.held_out, key=lambda example: len(base.tokens(example)))[:2], max_new_tokens=4)
    if retrieve is not None:
        retrieve(question_of(base.held_out[0]))
    return base, documents, missing


def _usable(model: AdaptedModel, examples: Sequence[Example], missing: dict[str, str]) -> tuple[Example, ...]:
    kept, problems = usable_examples(model, examples)
    if problems:
        excluded = f"{len(problems)} of {len(examples)} examples cannot be used with this base, the first: "
        missing.setdefault("examples", excluded + str(problems[0]))
    return tuple(examples[index] for index in kept)


def _answer_room(model: AdaptedModel, held_out: Sequence[Example], named: int | None, missing: dict[str, str]) -> int:
    """Tokens of an answer: as many as are named, else those of the longest held-out one in the context."""
    accepted = accepted_answers(model, held_out)
    if named is None:
        return longest_answer(accepted)
    if cut := too_long(accepted, named):
        missing["answers"] = (
            f"{cut} of {len(held_out)} held-out answers are longer than {named} tokens, so that no choice can give "
            "them: raise --max-new-tokens"
        )
    return named


def _within_context(base: ProbedBase, missing: dict[str, str]) -> ProbedBase:
    """Without the held-out examples that are longer than the base's context. Raises DataError if none is left."""
    held_out = tuple(example for example in base.held_out if base.fits(example))
    if excluded := len(base.held_out) - len(held_out):
        of_all, new = f"{excluded} of {len(base.held_out)}", base.max_new_tokens
        missing["held-out examples"] = f"{of_all} are longer than the base's context with {new} new tokens"
    if not held_out:
        raise DataError(
            f"none of {excluded} held-out examples fits the base's context with {base.max_new_tokens} new tokens: "
            "shorten them, or lower max_new_tokens"
        )
    return replace(base, held_out=held_out)


def _try_worked_examples(base: ProbedBase, missing: dict[str, str]) -> None:
    """Report where the chat template does not keep worked examples' answers: it may drop thoughts, or a blank one."""
    try:
        base.tokens(build_prompt(base.model, base.held_out[0], base.train[: max(SHOTS.values())]))
    except DataError as error:
        missing["worked examples"] = f"the base's chat template rewrites them as earlier answers: {error}"


def _retrieval(
    request: Request, folder: Path, missing: dict[str, str], progress: Progress
) -> tuple[Retrieve | None, int]:
    """What retrieves passages, None where no document can be read; and the number of documents."""
    collection = Collection(folder / COLLECTION)
    for number, event in enumerate(taken_in(collection, *listed(request.documents), folder), start=1):
        progress("documents", f"{number} indexed: {event.document}")
    documents = len(collection.documents())
    if not documents:
        missing["documents"] = f"{', '.join(request.documents)}: no document can be read"
        return None, 0
    retriever, cache = Retriever(collection), dict[str, list[Passage]]()

    def retrieve(question: str) -> list[Passage]:
        if question not in cache:
            cache[question] = [hit.passage for hit in retriever.search(question, request.passages)]
        return cache[question]

    return retrieve, documents
