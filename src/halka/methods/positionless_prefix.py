"""Prefix tuning whose virtual tokens take no positions: the text's own begin at zero, as with AdapterHub's library."""

from __future__ import annotations

from typing import ClassVar, cast

from halka.core import Part, Target, VirtualPart
from halka.methods._fields import method
from halka.methods.prefix import Prefix


@method
class PositionlessPrefix(Prefix):
    """A prefix beside the text instead of in front of it: nothing that the text computes of itself moves."""

    name: ClassVar[str] = "positionless_prefix"
    plain: ClassVar[str] = "Prefix tuning whose memory takes no place in the text, as with AdapterHub's library."

    def build(self, target: Target) -> Part:
        part = cast(VirtualPart, super().build(target))
        part.takes_positions = False
        return part
