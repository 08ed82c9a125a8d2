"""An adapter's model card, the README.md that the Hugging Face hub shows: what it is, how to use it, its record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from halka.models.base_names import HUB_NAME, hub_parts
from halka.models.fetching import known_bases
from halka.report.units import count, size
from halka.storage.adapter_folder import AdapterFolder
from halka.util.kinds import Kind

TRAINING = ("lr", "steps", "best_step", "batch_size", "batch_tokens", "seed", "examples", "tokens", "loss")
"""What is shown of a Card's training."""
USES: Mapping[Kind, tuple[str, str]] = {
    "causal-lm": ("text-generation", "AutoPeftModelForCausalLM"),
    "masked-lm": ("fill-mask", "AutoPeftModel"),
    "sequence-classification": ("text-classification", "AutoPeftModelForSequenceClassification"),
    "token-classification": ("token-classification", "AutoPeftModelForTokenClassification"),
    "seq2seq-lm": ("text2text-generation", "AutoPeftModelForSeq2SeqLM"),
}
"""The hub's name for what a kind of base does, and the class by which peft loads one with its adapter."""


def model_card(adapter: AdapterFolder, repository: str) -> str:
    """The text of an adapter's model card, which the hub is to have as `repository`: `org/name`.

    A licence is its author's to add. A base that is a folder here is not named, as the hub could not find it.
    """
    from huggingface_hub import ModelCardData

    card, config = adapter.card, adapter.config
    method = str(config.get("peft_type") or adapter.format.NAME).lower() if card is None else card.method["name"]
    base, task, class_ = _on_hub(adapter.base_name), *USES[adapter.kind or "causal-lm"]
    library = adapter.format.NAME if "fields" not in config else "halka"  # `fields` are of a method that peft lacks
    metadata = ModelCardData(base_model=base, library_name=library, pipeline_tag=task, tags=["halka", method])
    name = repository.rpartition("/")[2]
    own_base = "" if base else ', base="…"'
    use = f'import halka\n\nbase, tokenizer, model = halka.open("{repository}"{own_base})'
    if adapter.kind != "masked-lm":  # which answers nothing
        use += f'\nprint(halka.generate(model, ["…"], "{name}"))'
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {_inline(name)}",
        _what(adapter, method, base),
        "## Use",
        "With Halka (`pip install halka`):",
        _fenced(use, "python"),
    ]
    if library == "peft" and base:
        use = f'from peft import {class_}\n\nmodel = {class_}.from_pretrained("{repository}")'
        parts += ["With peft:", _fenced(use, "python")]
    if adapter.system:
        parts += ["Its training examples began with this system message:", _fenced(adapter.system, "text")]
    if card is not None:
        parts += _section("Method", {"method": method, **card.method["fields"]})
        parts += _section("Training", {"task": card.task or None, **{key: card.training.get(key) for key in TRAINING}})
        parts += _section("Scores", card.measurements)
        parts += _section("Versions", card.versions)
    return "\n\n".join(parts) + "\n"


def _on_hub(base: str | None) -> str | None:
    """A base's name on the hub, without its revision; None for a folder.

    A name of one word, as `gpt2`, may be a folder's, seen from where it was: it counts if the hub's cache has it.
    """
    from huggingface_hub import try_to_load_from_cache

    bases = known_bases()
    if base is None or base in bases:
        return bases[base].hub_name if base else None
    name = hub_parts(base)[0]
    if Path(base).exists() or not HUB_NAME.fullmatch(name):
        return None
    return name if "/" in name or isinstance(try_to_load_from_cache(name, "config.json"), str) else None


def _what(adapter: AdapterFolder, method: str, base: str | None) -> str:
    """A sentence on method, sizes and base, and one on the labels."""
    card = adapter.card
    parameters = f"{count(card.parameters)} parameters, " if card else ""
    quantize = f", quantised to {card.base['quantize']}" if card and card.base.get("quantize") else ""
    labels = f" Its labels: {', '.join(map(_inline, adapter.named_labels))}." if adapter.named_labels else ""
    where = f"`{base}`" if base else "a base that is not on the hub"
    return f"An adapter of {where}{quantize}: {_inline(method)}, {parameters}{size(adapter.size)}.{labels}"


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    """A table of what is a number, a text or a list; nothing without any."""
    shown = {key: value for key, value in values.items() if isinstance(value, int | float | str | list | tuple)}
    rows = [f"| {_inline(key)} | {_text(value)} |" for key, value in shown.items()]
    return [f"## {title}", "\n".join(["| | |", "| --- | --- |", *rows])] if rows else []


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else _inline(str(value))


def _inline(text: str) -> str:
    """In one line, without what Markdown or a table would take for its own."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def _fenced(text: str, language: str) -> str:
    """A block of code, its fence longer than any in the text."""
    fence = "`" * max(3, *(len(run) + 1 for run in ["", *re.findall("`+", text)]))
    return f"{fence}{language}\n{text}\n{fence}"
