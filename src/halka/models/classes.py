"""What a base is loaded as: with the head for its kind, which is new where a base is to tell labels apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from halka.models.kinds import KINDS, class_names, kind_of
from halka.models.layouts import LAYOUTS
from halka.util.errors import HalkaError

LABELLED = ("sequence-classification", "token-classification")
"""The kinds whose head tells labels apart."""
NEW = "new_modules"  # in a base's configuration: the modules that its weights did not have


def labels_of(base: Any) -> tuple[str, ...]:
    """The labels that a base's head tells apart, by place; none where it does something else."""
    if kind_of(base) not in LABELLED:
        return ()
    names = base.config.id2label
    return tuple(str(names[place]) for place in sorted(names))


def usual_kind(config: Any) -> str:
    """What a base is for, as its configuration says: by its class, else the other text or the next token."""
    (architecture,) = (config.architectures or [""])[:1]
    heads = {
        "ForSequenceClassification": LABELLED[0],
        "ForTokenClassification": LABELLED[1],
        "ForMaskedLM": "masked-lm",
    }
    own = next((kind for ending, kind in heads.items() if architecture.endswith(ending)), None)
    return own or ("seq2seq-lm" if config.is_encoder_decoder else "causal-lm")


def check_class(config: Any, kind: str) -> None:
    """Raises ValueError for a kind of base that an architecture cannot be."""
    layout, there = LAYOUTS.get(config.model_type), class_names(config.model_type)
    if kind == "causal-lm" and layout is not None and not layout.causal:
        raise HalkaError(
            f"it is an encoder ({config.model_type}), no causal language model: say what kind it is to be, "
            "such as sequence-classification"
        )
    if kind not in there:
        others = f"choose a kind of {', '.join(there)}" if there else "it is no language model: choose another base"
        raise HalkaError(f"transformers has no {kind} of the architecture {config.model_type!r}: {others}")


def head_of(base: Any) -> tuple[str, ...]:
    """The modules, by path, that an adapter of a base with labels trains whole: its head, and others that are new."""
    if kind_of(base) not in LABELLED:
        return ()
    beside = [
        path
        for path, module in base.named_children()
        if path != base.base_model_prefix and any(True for _ in module.parameters())
    ]
    return tuple(dict.fromkeys([*beside, *getattr(base.config, NEW, ())]))


def label_rows(base: Any) -> tuple[str, ...]:
    """The parameters, by name, that have a row for each label: those of the head's last layer."""
    if kind_of(base) not in LABELLED:
        return ()
    inside = f"{base.base_model_prefix}."
    *_, last = (path for path, each in base.named_modules() if each._parameters and not path.startswith(inside))
    return tuple(f"{last}.{key}" for key, each in base.get_submodule(last)._parameters.items() if each is not None)


def checked(labels: Iterable[str]) -> tuple[str, ...]:
    """The labels, if they can be told apart. Raises ValueError for fewer than two, and for one that is there twice."""
    if isinstance(labels, str):
        raise HalkaError(f"labels is a list of names, not the text {labels!r}")
    labels = tuple(labels)
    if wrong := [each for each in labels if not isinstance(each, str) or not each.strip()]:
        raise HalkaError(f"a label is a text that is not empty, not {wrong[0]!r}")
    if double := [each for each in labels if labels.count(each) > 1]:
        raise HalkaError(f"the label {double[0]!r} is there twice")
    if len(labels) < 2:
        raise HalkaError(f"there are {len(labels)} labels: it takes two to tell something apart")
    return labels


def from_folder(folder: Path, kind: str, labels: Sequence[str] | None, seed: int, **options: Any) -> Any:
    """A base of that kind from a folder; what of its head is not there begins from `seed`.

    Labels that the head in the weights has too keep their rows, wherever they stand; others name the rows left.
    Raises ValueError for a kind that there is not, labels that the kind does not have, a head without labels, and
    weights that lack anything but the head.
    """
    import transformers

    if kind not in KINDS:
        raise HalkaError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    if labels is not None and kind not in LABELLED:
        raise HalkaError(f"labels are for {' and '.join(LABELLED)}: a {kind} has none")
    labels = None if labels is None else checked(labels)
    named = {} if labels is None else {"id2label": dict(enumerate(labels)), "label2id": _places(labels)}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, found = getattr(transformers, KINDS[kind]).from_pretrained(
            folder,
            **named,
            **options,
            ignore_mismatched_sizes=labels is not None,
            output_loading_info=True,
        )
    new = {*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}
    modules = _modules_of(new, model) if kind in LABELLED else ()
    if missing := sorted(key for key in new if not any(key.startswith(f"{path}.") for path in modules)):
        raise HalkaError(
            f"the weights of {folder} lack {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}; "
            f"transformers would fill them at random. Give complete weights of a {kind}"
        )
    if new and labels is None:
        raise HalkaError(
            f"the weights of {folder} have no head that tells labels apart: say which labels it shall learn, "
            f'`halka.load_base(name, kind="{kind}", labels=[…])`, or `halka adapters convert --labels`'
        )
    if labels is not None and new.isdisjoint(label_rows(model)):
        own: Any = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _reorder(model, [str(own.id2label[place]) for place in sorted(own.id2label)], labels)
    setattr(model.config, NEW, list(modules))
    return model


def _reorder(model: Any, before: Sequence[str], labels: Sequence[str]) -> None:
    """Gives each label its own of the head's rows, which stand for the labels `before`, and new ones the others'."""
    if len(before) != len(labels):  # a configuration that does not tell of its own weights
        return
    rows = {label: before.index(label) for label in labels if label in before}
    left = iter(sorted(set(range(len(before))) - set(rows.values())))
    order = [rows[label] if label in rows else next(left) for label in labels]
    with torch.no_grad():
        for key in label_rows(model):
            parameter = model.get_parameter(key)
            parameter.copy_(parameter[order])


def _places(labels: Sequence[str]) -> dict[str, int]:
    return {label: place for place, label in enumerate(labels)}


def _modules_of(new: set[str], model: Any) -> tuple[str, ...]:
    """The modules of the head that new tensors are in: those beside the backbone, and its pooler."""
    prefix = f"{model.base_model_prefix}."
    paths = {key.partition(".")[0] for key in new if not key.startswith(prefix)}
    poolers = {f"{prefix}pooler" for key in new if key.startswith(f"{prefix}pooler.")}
    return tuple(sorted(paths | poolers))
