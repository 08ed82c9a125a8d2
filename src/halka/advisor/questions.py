"""`Questions`: the user's examples and the base, as all probes ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from halka.advisor.conditions import BOTH, CLOSED, DOCUMENTS, EXAMPLES, Find, conditioned, question_of
from halka.advisor.worth import worth
from halka.core import AdaptedModel, in_mode
from halka.data.batches import collate, plan
from halka.data.examples import Example
from halka.data.tokens import Tokens, encode, encode_prompt
from halka.evaluation.generation import iter_answers
from halka.models import context, hidden_states, logits, pad_id
from halka.models.attention.function import use_attention
from halka.rag.passages import Passage

BATCH, BATCH_TOKENS = 16, 4096  # examples, and tokens with padding, that are asked or read at once
SHOTS = {CLOSED: 0, EXAMPLES: 4, DOCUMENTS: 0, BOTH: 2}  # with passages fewer, as each shot brings its own


@dataclass(frozen=True)
class Questions:
    """What is asked of whom.

    train, held_out   examples to learn from and to be judged by, that end with their answer
    metric            what answers are worth
    find              a question to its passages, where there are documents
    """

    model: AdaptedModel
    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    metric: str
    max_new_tokens: int
    find: Find | None = None
    shots: dict[str, int] = field(default_factory=lambda: dict(SHOTS))
    _read: dict[str, list[tuple[list[int], np.ndarray]]] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )

    @property
    def conditions(self) -> tuple[str, ...]:
        """Those under which the base can be asked: with documents only if there are some."""
        return (CLOSED, EXAMPLES) if self.find is None else (CLOSED, EXAMPLES, DOCUMENTS, BOTH)

    def first(self, count: int) -> Questions:
        """The same with fewer held-out examples."""
        return replace(self, held_out=self.held_out[:count])

    def put(self, example: Example, condition: str) -> Example:
        """The example as it is asked under a condition, with as many shots, and then passages, as the context holds."""
        own = self.train[: self.shots[condition]]
        passages = self.find(question_of(example)) if self.find and condition in (DOCUMENTS, BOTH) else None
        ways = [(count, passages) for count in range(len(own), 0, -1)]
        ways += [(0, passages and passages[:count]) for count in range(len(passages or ()), -1, -1)]
        for count, shown in ways:
            asked = self._asked(example, own[:count], shown)
            if self.fits(asked):
                return asked
        return asked

    def _asked(self, example: Example, shots: Sequence[Example], shown: Sequence[Passage] | None) -> Example:
        if shown is None:
            return conditioned(self.model, example, shots)
        assert self.find is not None
        own = {question_of(each): self.find(question_of(each)) for each in shots} | {question_of(example): shown}
        return conditioned(self.model, example, shots, own.__getitem__)

    def fits(self, asked: Example) -> bool:
        """Whether the base's context holds it, with its answer and with what the base may answer."""
        room = context(self.model, None)
        length = max(len(self.whole(asked)), len(encode_prompt(asked, self.model.tokenizer)) + self.max_new_tokens)
        return room is None or length <= room

    def answers(
        self, names: str | Sequence[str | None] | None, asked: Sequence[Example], done: Callable[[], None] | None = None
    ) -> list[str]:
        """What the base, an adapter, or an adapter for each answers."""
        texts = [""] * len(asked)
        each_by = [names] * len(asked) if names is None or isinstance(names, str) else names
        lengths = [len(encode_prompt(each, self.model.tokenizer)) + self.max_new_tokens for each in asked]
        for chosen in plan(lengths, seed=0, epoch=0, batch_tokens=BATCH_TOKENS, batch_size=BATCH):
            by, put = [each_by[index] for index in chosen], [asked[index] for index in chosen]
            made = iter_answers(self.model, by, put, max_new_tokens=self.max_new_tokens, batch_size=BATCH)
            for number, text in made:
                texts[chosen[number]] = text
                if done is not None:
                    done()
        return texts

    def values(self, texts: Sequence[str], condition: str = CLOSED) -> tuple[float, ...]:
        """What answers to the held-out examples are worth, as they were asked under a condition."""
        references = [each.answers for each in self.held_out]
        return worth(self.metric, texts, references, passages=condition in (DOCUMENTS, BOTH))

    def read(self, condition: str) -> list[tuple[list[int], np.ndarray]]:
        """The bare base's losses of the held-out answers under a condition; whoever asks again reads nothing anew."""
        if condition not in self._read:
            self._read[condition] = self.losses(None, [self.put(each, condition) for each in self.held_out])
        return self._read[condition]

    def losses(self, name: str | None, asked: Sequence[Example]) -> list[tuple[list[int], np.ndarray]]:
        """Of each example's last answer the token ids, and each one's loss in nats."""
        return token_losses(self.model, name, [self.whole(each) for each in asked])

    def answer_ids(self, example: Example) -> list[int]:
        """The tokens of its last answer, with what ends it."""
        whole = self.whole(example)
        return [token for token, counts in zip(whole.ids, whole.loss, strict=True) if counts]

    def whole(self, example: Example) -> Tokens:
        """Its tokens, with loss on the last answer alone; what is over the context is cut in front."""
        tokens = encode(example, self.model.tokenizer)
        start = len(encode_prompt(example, self.model.tokenizer))
        loss = [False] * start + tokens.loss[start:]
        room = context(self.model, None)
        over = 0 if room is None else max(0, len(loss) - room)
        return Tokens(tokens.ids[over:], loss[over:])


def token_losses(model: AdaptedModel, name: str | None, items: Sequence[Tokens]) -> list[tuple[list[int], np.ndarray]]:
    """Of each item the ids that carry loss, and the loss of each, in nats, without dropout."""
    found: list[tuple[list[int], np.ndarray]] = [([], np.zeros(0))] * len(items)
    device = next(model.base.parameters()).device
    with torch.inference_mode(), model.use(name), use_attention(model.base), in_mode(False, model.base):
        for chosen in plan([len(item) for item in items], seed=0, epoch=0, batch_tokens=BATCH_TOKENS):
            batch = collate([items[index] for index in chosen], pad_id(model)).to(device)
            hidden = hidden_states(model, **batch.inputs)
            for row, index in enumerate(chosen):
                at = [place for place, counts in enumerate(items[index].loss) if counts and place]
                ids = [items[index].ids[place] for place in at]
                before = hidden[row, [place - 1 for place in at]]
                told = F.cross_entropy(
                    logits(model, before).float(), torch.tensor(ids, device=device), reduction="none"
                )
                found[index] = (ids, told.cpu().double().numpy())
    return found
