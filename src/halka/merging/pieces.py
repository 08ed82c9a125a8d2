"""Split an adapter of several methods by method; all its LoRAs are one piece, whatever their ranks."""

from __future__ import annotations

from halka.core import Adapter, wants
from halka.methods import LoRA, joined_with, methods_of
from halka.methods.lora import FACTORS


def pieces(adapter: Adapter) -> list[Adapter]:
    """One adapter for each of its methods, in their order, with the same part objects."""
    methods = methods_of(adapter.method)
    paths: list[list[str]] = [[] for _ in methods]
    for path, target in adapter.targets.items():
        able = [place for place, method in enumerate(methods) if wants(method.roles(), target)]
        (place,) = able if len(able) == 1 else [place for place in able if methods[place].build(target) is not None]
        paths[place].append(path)
    split: list[Adapter] = []
    loras: Adapter | None = None
    for method, own in zip(methods, paths, strict=True):
        if not own:
            continue
        piece = Adapter(
            method, {path: adapter.parts[path] for path in own}, {path: adapter.targets[path] for path in own}
        )
        if not is_lora(piece):
            split.append(piece)
        elif loras is None:
            split.append(loras := piece)
        else:
            loras.method = joined_with(loras.method, method)
            loras.parts.update(piece.parts)
            loras.targets.update(piece.targets)
    return split


def is_lora(piece: Adapter) -> bool:
    """Whether all its parts are LoRA parts."""
    return all(type(part) in FACTORS for part in piece.parts.values())


def kind(piece: Adapter) -> str:
    """The name of a piece's method; `lora` for the piece of all LoRAs."""
    return LoRA.name if is_lora(piece) else piece.method.name
