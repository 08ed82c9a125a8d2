"""What transformers and peft call each kind of base (`halka.util.kinds`). A base's class tells its kind."""

from __future__ import annotations

from typing import Any

from halka.util.errors import HalkaError
from halka.util.kinds import Kind

KINDS: dict[str, str] = {  # kind -> the transformers class that loads bases of it
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
}
TASK_TYPES: dict[Kind, str | None] = {  # kind -> Hugging Face peft's `task_type`
    "causal-lm": "CAUSAL_LM",
    "masked-lm": None,
    "sequence-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "seq2seq-lm": "SEQ_2_SEQ_LM",
}


def kind_of_task(task_type: Any) -> Kind | None:
    """The kind for peft's `task_type`; None if no kind has it, or if it is None."""
    return next((kind for kind, name in TASK_TYPES.items() if name is not None and name == task_type), None)


def class_names(model_type: Any) -> dict[Kind, tuple[str, ...]]:
    """The transformers classes of an architecture by kind, without the kinds for which it has none."""
    from transformers.models.auto import modeling_auto as auto

    classes: dict[Kind, Any] = {
        "causal-lm": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "masked-lm": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "sequence-classification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "token-classification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        "seq2seq-lm": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }
    names: dict[Kind, tuple[str, ...]] = {}
    for kind, by_architecture in classes.items():
        if own := by_architecture.get(model_type):
            names[kind] = (own,) if isinstance(own, str) else tuple(own)
    return names


def kind_of(base: Any) -> Kind:
    """The base's kind. Raises HalkaError for a model that has none, such as a bare encoder without a head."""
    ancestry = [ancestor.__name__ for ancestor in type(base).__mro__]
    for kind, names in class_names(getattr(getattr(base, "config", None), "model_type", None)).items():
        if any(name in names for name in ancestry):
            return kind
    raise HalkaError(
        f"{type(base).__name__} is none of {', '.join(KINDS)}: load the model with one of {', '.join(KINDS.values())}"
    )


def usual_kind(config: Any) -> Kind:
    """The kind that a base's configuration names: by its architecture's class, else seq2seq-lm or causal-lm."""
    architecture = (config.architectures or [""])[0]
    endings: dict[str, Kind] = {
        "ForSequenceClassification": "sequence-classification",
        "ForTokenClassification": "token-classification",
        "ForMaskedLM": "masked-lm",
    }
    for ending, kind in endings.items():
        if architecture.endswith(ending):
            return kind
    return "seq2seq-lm" if config.is_encoder_decoder else "causal-lm"
