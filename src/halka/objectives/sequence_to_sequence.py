"""Sequence to sequence: an encoder reads the prompt, a decoder writes the answer; loss on every answer token.

The prompt is the contents of all messages before the answer, one a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from halka.core import AdaptedModel
from halka.data.batches import IGNORE_INDEX, Batch, mask_of, padded
from halka.data.examples import Example, Item
from halka.data.truncation import EncodedExamples, LengthPolicy, truncate
from halka.models import pad_id, run
from halka.objectives.cross_entropy import summed_cross_entropy
from halka.objectives.language_modelling import GREEDY
from halka.util.errors import DataError
from halka.util.transfer import to_device


@dataclass(frozen=True)
class Pair(Item):
    """Token ids of the prompt and of the answer, special tokens included; an answer ends with end-of-sequence."""

    ids: list[int]
    answer: list[int]

    @property
    def labels(self) -> int:
        return len(self.answer)

    def __len__(self) -> int:
        return len(self.ids) + len(self.answer)


class SequenceToSequence:
    """Cross entropy on the answer's tokens, answers by generation. `max_length` limits prompt and answer together."""

    head_sees_rows = True
    answer_uses_context = False

    def encode(
        self,
        model: AdaptedModel,
        name: str | None,
        examples: Sequence[Example],
        max_length: int | None,
        too_long: LengthPolicy,
    ) -> EncodedExamples[Pair]:
        def shorten(index: int, item: Pair, length: int) -> Pair | DataError:
            """The prompt is cut, never the answer."""
            room = length - len(item.answer)
            if room < 2:
                return DataError(f"the answer alone has {len(item.answer)} tokens, where max_length is {length}")
            return Pair(_prompt_ids(examples[index], model.tokenizer, room), item.answer)

        items = [_pair(example, model.tokenizer) for example in examples]
        return truncate(examples, items, shorten, max_length, too_long)

    def encode_prompt(self, model: AdaptedModel, example: Example, max_length: int | None) -> Pair:
        return Pair(_prompt_ids(example, model.tokenizer, max_length), [])

    def collate(self, items: Sequence[Pair], padding: int) -> Batch:
        ids = [item.ids for item in items]
        return Batch(padded(ids, padding), mask_of(ids), padded([item.answer for item in items], IGNORE_INDEX))

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        base: Any = model.base
        shifted = base.prepare_decoder_input_ids_from_labels(labels=batch.labels)  # on the CPU, as labels are
        (decoder_input_ids,) = to_device([shifted], base.device)
        return run(model, **batch.inputs, decoder_input_ids=decoder_input_ids).logits

    def loss(self, model: AdaptedModel, name: str | None, outputs: Tensor, labels: Tensor) -> Tensor:
        return summed_cross_entropy(outputs, labels, outputs.shape[-1])

    def answers(
        self,
        model: AdaptedModel,
        names: Sequence[str | None],
        items: Sequence[Pair],
        max_new_tokens: int,
        options: Mapping[str, Any],
    ) -> list[str]:
        base: Any = model.base
        batch = self.collate(items, pad_id(model)).to(base.device)
        own = {"tokenizer": model.tokenizer, **GREEDY, **options}  # which stop strings need
        ids_BS = base.generate(**batch.inputs, max_new_tokens=max_new_tokens, **own)
        return [text.strip() for text in model.tokenizer.batch_decode(ids_BS, skip_special_tokens=True)]


def _pair(example: Example, tokenizer: PreTrainedTokenizerBase) -> Pair | DataError:
    if example.answer is None:
        return DataError("it has no answer")
    if any(message.role in ("tools", "tool") or message.calls for message in example.messages):
        return DataError("tools need a chat template, which a sequence-to-sequence base has not: write them as text")
    answer = tokenizer(text_target=example.answer, verbose=False)["input_ids"]
    end = tokenizer.eos_token_id
    answer = answer if end is None or answer[-1:] == [end] else [*answer, end]
    return Pair(_prompt_ids(example, tokenizer), answer)


def _prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> list[int]:
    text = "\n".join(message.content for message in example.prompt)
    return tokenizer(text, verbose=False, truncation=max_length is not None, max_length=max_length)["input_ids"]
