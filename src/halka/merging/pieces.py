"""An adapter of several methods as several adapters: its LoRAs, which are one whatever their ranks, and each other."""

from __future__ import annotations

from halka.core import Adapter, Joint, beside, wants
from halka.methods import LoRA
from halka.methods.lora import FACTORS


def pieces(adapter: Adapter) -> list[Adapter]:
    """The adapter's parts by the methods that built them, in their order; the parts are the very same."""
    methods = adapter.method.methods if isinstance(adapter.method, Joint) else (adapter.method,)
    paths: list[list[str]] = [[] for _ in methods]
    for path, target in adapter.targets.items():
        able = [place for place, each in enumerate(methods) if wants(each.roles(), target)]
        (place,) = able if len(able) == 1 else [each for each in able if methods[each].build(target) is not None]
        paths[place].append(path)
    found: list[Adapter] = []
    loras: Adapter | None = None
    for method, own in zip(methods, paths, strict=True):
        if not own:
            continue
        piece = Adapter(
            method, {path: adapter.parts[path] for path in own}, {path: adapter.targets[path] for path in own}
        )
        if not is_lora(piece):
            found.append(piece)
        elif loras is None:
            found.append(loras := piece)
        else:
            loras.method = beside(loras.method, method)
            loras.parts.update(piece.parts)
            loras.targets.update(piece.targets)
    return found


def is_lora(piece: Adapter) -> bool:
    """Whether all that it adds are products of two factors."""
    return all(type(part) in FACTORS for part in piece.parts.values())


def kind(piece: Adapter) -> str:
    """A piece's name: of LoRAs one, however many methods they are of."""
    return LoRA.name if is_lora(piece) else piece.method.name
