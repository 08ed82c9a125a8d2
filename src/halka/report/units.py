"""Format numbers for reading (4.9 M, 2.7 GB, 61 %, 2e-3), join names in a sentence, parse sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from halka.util.errors import HalkaError

MINUS = "−"
MOST_BYTES = 2**60


def decimals(value: float, digits: int = 3) -> str:
    """`digits` significant figures, never in scientific notation, with a true minus sign: 0.514, 31.0, 1240."""
    if value == 0:
        return "0"
    places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{min(places, 8)}f}".replace("-", MINUS)


def count(value: float) -> str:
    """A count: 950, 57.6 k, 4.9 M, 1.2 B."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return _scaled(value / size) + unit
    return f"{value:.0f}".replace("-", MINUS)


def size(value: float) -> str:
    """Bytes in decimal units: 512 B, 74 kB, 19.6 MB, 2.7 GB."""
    for unit_size, unit in ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB")):
        if abs(value) >= 0.9995 * unit_size:
            return _scaled(value / unit_size) + unit
    return f"{value:.0f} B".replace("-", MINUS)


def bytes_said(text: str, *, bare: bool = True) -> int:
    """Parse a size to bytes: 512MB, 1.5 GB, 2GiB, 24G; with `bare`, a number without a unit is MB.

    Raises HalkaError for text that is no size, for less than one byte, and for 2**60 bytes or more.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(I?)B?|(B))?", text.strip().upper())
    number, prefix, binary, whole = match.groups() if match else ("0", None, None, None)
    way = "write it as 512MB, 1.5GB" + (", or as a number of MB" if bare else "")
    if match and not (bare or prefix or whole):
        raise HalkaError(f"{shortened(text)!r} has no unit: {way}")
    unit = (1024 if binary else 1000) ** " KMGT".index(prefix) if prefix else 1 if whole else 10**6
    if not 1 <= (total := float(number) * unit) < MOST_BYTES:
        raise HalkaError(f"{shortened(text)!r} is {'no size above 0' if total < 1 else 'more than there is'}: {way}")
    return int(total)


def percent(value: float, places: int | None = None) -> str:
    """A share as a percentage: 61 %, 3.6 %, 0.014 %; `places` fixes the figures after the point."""
    value = 100 * value
    if places is None:
        places = 0 if abs(value) >= 9.95 or value == 0 else min(1 - math.floor(math.log10(abs(value))), 6)
    return f"{value:.{places}f} %".replace("-", MINUS)


def signed(value: float) -> str:
    """A change as a percentage with its sign: +9 %, −2.1 %; from +1000 % on as a factor: ×82, ×6,783."""
    if value >= 10:
        return f"×{1 + value:,.0f}"
    text = percent(value, 0 if abs(value) >= 0.0995 else 1)
    return text if value <= 0 else f"+{text}"


def bounds(low: float, high: float, places: int | None = None) -> str:
    """An interval in brackets: [53–78] of shares, as percentages; [0.12–0.31] of others, with `places` figures.

    From 10 on it has one figure fewer, from 100 on two: [47.7–58.7]. A narrow one has as many more as tell its ends
    apart: [0.0003–0.0009], [99.6–99.9].
    """
    scale, places = (100, 0) if places is None else (1, max(places - _tens(max(abs(low), abs(high))), 0))
    if high > low:
        places = min(max(places, -math.floor(math.log10(scale * (high - low)))), 8)
    return f"[{scale * low:.{places}f}–{scale * high:.{places}f}]".replace("-", MINUS)


def learning_rate(value: float) -> str:
    """2e-3, 1.5e-4, 1."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return mantissa if int(exponent) == 0 else f"{mantissa}e{int(exponent)}"


def duration(seconds: float) -> str:
    """8.2 s, 61 s, 2.4 min, 12 min, 3.4 h."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    if seconds < 597:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def step_time(seconds: float) -> str:
    """410 ms, and as `duration` from a second on."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else duration(seconds)


def times(value: float) -> str:
    """A factor: 1.3, 12, 140."""
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def listed(names: Sequence[str], join: str = "and") -> str:
    """A, B and C."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {join} {names[-1]}"


def shortened(text: str, length: int = 22) -> str:
    """At most `length` characters, the last one an ellipsis where something was cut."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"


def _tens(value: float) -> int:
    """The power of ten in a value, 0 below 10."""
    return math.floor(math.log10(max(value, 1)))


def _scaled(value: float) -> str:
    return f"{value:.0f}".replace("-", MINUS) if abs(value) >= 99.95 else f"{value:.1f}".replace("-", MINUS)
