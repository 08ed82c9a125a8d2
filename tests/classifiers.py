"""Tiny classifiers and taggers of several architectures, and examples for them to learn."""

from __future__ import annotations

import torch
import transformers
from transformers import AutoConfig

import halka
from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.models.kinds import KINDS
from tokenizers_for_tests import plain_tokenizer

LABELS = ("good", "bad", "meh")
CLASSES, TAGS = "sequence-classification", "token-classification"
_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TEXTS = ("What is the capital?", "How do I reset my password?", "Yes. No. Perhaps.", "The capital of France is Paris.")


def classifier(
    architecture: str = "bert", kind: str = CLASSES, labels: tuple[str, ...] = LABELS, seed: int = 0
) -> AdaptedModel:
    """A random base with a head for these labels, and a tokenizer."""
    tokenizer = plain_tokenizer()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        architecture,
        **_SIZES,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: place for place, label in enumerate(labels)},
    )
    return halka.adapt(getattr(transformers, KINDS[kind]).from_config(config).eval(), tokenizer)


def example(text: str, answer: str, where: str = "") -> Example:
    return Example((Message("user", text), Message("assistant", answer)), where=where)


def examples(kind: str = CLASSES, labels: tuple[str, ...] = LABELS, count: int = 8) -> list[Example]:
    """Texts with a label each, or a label for each word."""
    made = []
    for number in range(count):
        text = TEXTS[number % len(TEXTS)]
        words = range(len(text.split())) if kind == TAGS else range(1)
        made.append(example(text, " ".join(labels[(number % len(TEXTS) + word) % len(labels)] for word in words)))
    return made


def logits(model: AdaptedModel, name: str | list[str | None] | None, texts: tuple[str, ...] = TEXTS) -> torch.Tensor:
    given = model.tokenizer(list(texts), return_tensors="pt", padding=True)
    with torch.no_grad(), model.use(name):
        return model.base(**given).logits
