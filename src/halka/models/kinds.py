"""What a base is for, told by its class: the next token, masked ones, a label, labels of tokens, or another text."""

from __future__ import annotations

from typing import Any

from halka.util.errors import HalkaError

KINDS = {  # kind -> the transformers class that loads bases of it
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
}


TASK_TYPES = {  # kind -> Hugging Face peft's word for it
    "causal-lm": "CAUSAL_LM",
    "masked-lm": None,
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}


def kind_of_task(task_type: Any) -> str | None:
    """The kind that peft's word stands for; None for one that no kind has, and for none."""
    return next((kind for kind, word in TASK_TYPES.items() if word is not None and word == task_type), None)


def class_names(model_type: Any) -> dict[str, tuple[str, ...]]:
    """By kind, the transformers classes of that architecture; kinds that it has none for are left out."""
    from transformers.models.auto import modeling_auto as auto

    classes = {
        "causal-lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked-lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "sequence-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token-classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "seq2seq-lm": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    found = {kind: names.get(model_type, ()) for kind, names in classes.items()}
    return {kind: (own,) if isinstance(own, str) else tuple(own) for kind, own in found.items() if own}


def kind_of(base: Any) -> str:
    """One of `KINDS`. Raises ValueError for a model that is none, such as a bare encoder without a head."""
    ancestry = [each.__name__ for each in type(base).__mro__]
    for kind, names in class_names(getattr(getattr(base, "config", None), "model_type", None)).items():
        if any(name in names for name in ancestry):
            return kind
    raise HalkaError(
        f"{type(base).__name__} is none of {', '.join(KINDS)}: load the model with one of {', '.join(KINDS.values())}"
    )
