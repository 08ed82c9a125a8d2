"""`halka adapters`: what an adapter folder holds, ours or peft's, without loading any base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from halka.cli.command import Command, Json, columns, emit, examples, group, show
from halka.cli.opening import adapter_folder

TOLD = ("lr", "steps", "best_step", "batch_size", "batch_tokens", "seed", "examples", "tokens", "loss")

app = group("Adapter folders: look into them.", "halka adapters show runs/support/adapter")


@app.command("show", cls=Command, epilog=examples("halka adapters show runs/support/adapter"))
def show_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="an adapter's folder, ours or peft's")],
    json: Json = False,
) -> None:
    """Show an adapter: its base, method, task, training, scores, sizes and shapes."""
    found = describe(adapter_folder(folder, "FOLDER"))
    if json:
        emit(found)
    else:
        _show(found)


def describe(folder: Path) -> dict[str, Any]:
    """What an adapter folder says of itself, and what its weights' header says.

    Raises ValueError for a folder without an adapter, and for one that is damaged.
    """
    from halka.store import read_card, read_config

    config, card = read_config(folder), read_card(folder)
    tensors = _tensors(folder)
    files = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.is_file()}
    return {
        "folder": folder,
        "base": config.get("base_model_name_or_path") if card is None else card.base,
        "method": config.get("peft_type") if card is None else card.method,
        "parameters": sum(each["parameters"] for each in tensors),
        "bytes": sum(files.values()),
        "files": files,
        "tensors": tensors,
        "card": card,
        "config": config,
    }


def _tensors(folder: Path) -> list[dict[str, Any]]:
    """Tensors alike in last name, shape and type, counted; only the header is read."""
    import math
    from collections import Counter

    from safetensors import SafetensorError, safe_open

    from halka.formats.peft import WEIGHTS

    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (a safetensors file is no mapping)
            kinds = Counter(
                (_last_name(key), tuple(each.get_shape()), str(each.get_dtype())) for key, each in slices.items()
            )
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}): copy or train it again") from None
    return [
        {"name": name, "shape": list(shape), "dtype": dtype, "count": count, "parameters": math.prod(shape) * count}
        for (name, shape, dtype), count in sorted(kinds.items())
    ]


def _last_name(key: str) -> str:
    """`lora_A` of `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`."""
    return key.removesuffix(".weight").rpartition(".")[2]


def _show(found: dict[str, Any]) -> None:
    from halka.report.units import count, size

    card, config = found["card"], found["config"]
    table = columns("", "")
    table.show_header = False
    if card is None:
        told = {key: value for key, value in config.items() if value not in (None, False, [], {}, "")}
        lines = {"base": config.get("base_model_name_or_path") or "not said", **told}
        lines.pop("base_model_name_or_path", None)
    else:
        base = card.base
        lines = {
            "base": f"{base['name'] or 'unnamed'} ({_said(base['fingerprint'])})",
            "method": f"{card.method['name']} ({_said(card.method['fields'])})",
            "task": card.task,
            "chat template": card.chat_template,
            "training": _said({key: card.training.get(key) for key in TOLD}),
            "scores": _said(card.measurements),
            "made": f"{card.created} with {_said(card.versions)}",
        }
    lines |= {"parameters": count(found["parameters"]), "size": size(found["bytes"])}
    for key, value in lines.items():
        table.add_row(key, _text(value) or "–")
    shapes = columns("tensors", "count", "shape", "type", right=("count",))
    for each in found["tensors"]:
        shapes.add_row(each["name"], str(each["count"]), " × ".join(map(str, each["shape"])), each["dtype"])
    show(table, "", shapes)
    if card is None:
        show("", "No Card (halka.json): another tool wrote this folder.")


def _said(values: Any) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in values.items() if value not in (None, []))


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
