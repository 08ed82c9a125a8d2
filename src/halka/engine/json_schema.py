"""JSON Schemas that llguidance enforces in full: all others are refused, and what it would let through is closed.

llguidance itself refuses keywords that it knows and cannot enforce; it skips names that it does not know (a misspelt
`maxlength`, OpenAPI's `nullable`), counts a key that comes twice as two properties, and has formats that are a little
too wide. Every valid object is not possible: properties come in the order of the schema.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from halka.util.errors import HalkaError

ANNOTATIONS = {"$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly"} | {
    "writeOnly",
    "discriminator",  # OpenAPI's hint to which of `oneOf` it is
}
NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
SIZES = {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
VALUES = {"type", "enum", "const", "required", "pattern", "format", "$ref", "$id", *NUMBERS, *SIZES}
ONE = {"items", "additionalItems", "additionalProperties"}  # a schema; of items also a list of them
MANY = {"anyOf", "allOf", "oneOf", "prefixItems"}  # lists of schemas
NAMED = {"properties", "patternProperties", "$defs", "definitions"}  # schemas by name
ENFORCED = VALUES | ONE | MANY | NAMED

YEAR = {"pattern": "^0{0,3}[1-9]"}
LEAP = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
DAY = rf"(?:\d{{4}}-(?:(?:0[13-9]|1[0-2])-\d\d|02-(?:[01]\d|2[0-8]))|{LEAP}-02-29)"
FORMATS: dict[str, list[dict[str, Any]]] = {  # with what llguidance's own expression lacks
    "date": [YEAR, {"pattern": f"^{DAY}$"}],  # 29 February in leap years only
    "date-time": [YEAR, {"pattern": f"^{DAY}.\\d\\d:\\d\\d:[0-5]"}],  # no leap seconds, which only some minutes have
    "time": [{"pattern": r"^\d\d:\d\d:[0-5]"}],
    "duration": [],
    "email": [],
    "hostname": [{"maxLength": 253}],
    "ipv4": [],
    "ipv6": [],
    "uri": [],
    "uuid": [],
}
DEPTH = 64  # of a schema within schemas, in keywords and names
REMAINDERS = 100_000  # that a number may have by all of a schema's multipleOf: each is a state of the automaton
UNWRITABLE = re.compile(r"(?<!\\)(?:\\\\)*\\u00|\x7f")  # control characters by number, which `OPTIONS` leaves out
CLASS = re.compile(r"\\.|(\[\^?(?:\\.|[^\]\\])*(?:\]|\\?\Z))", re.DOTALL)  # one without an end is read once, too
CLASS_OPERATION = re.compile(r"(?<!\\)(?:\[|&&|--|~~)")

OPTIONS = {"json_allowed_escapes": '"\\bfnrt'}  # none by number: "\u0061" would be the key "a" unseen


def enforceable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as llguidance is to read it. Raises HalkaError for a keyword, by its name, that is not enforced."""
    try:
        plain = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise HalkaError(f"schema is no JSON: {error}") from None
    places: set[str] = set()
    references: list[tuple[str, Any]] = []
    checked = _check(plain, "", places, references, set())
    for place, reference in references:
        if not (isinstance(reference, str) and reference.startswith("#") and unquote(reference[1:]) in places):
            raise _refusal(place, "$ref", f"{reference!r} is no schema within this one")
    return checked


def _refusal(place: str, keyword: str, why: str) -> HalkaError:
    return HalkaError(f"schema at #{place}: {keyword!r}: {why}")


def _check(schema: Any, place: str, places: set[str], references: list[tuple[str, Any]], multiples: set[int]) -> Any:
    """The schema at a place, a JSON pointer, with those inside; values of the wrong kind are left to llguidance."""
    places.add(place)
    if not isinstance(schema, dict):
        return schema
    if place.count("/") > DEPTH:
        raise HalkaError(f"schema is nested deeper than {DEPTH}: name its inner schemas in $defs")
    for keyword, value in schema.items():
        if keyword not in ENFORCED | ANNOTATIONS or (keyword == "$id" and place):
            raise _refusal(place, keyword, "this keyword cannot be enforced while tokens are drawn: leave it out")
        if keyword == "$ref":
            references.append((place, value))
    _check_values(schema, place)
    if isinstance(of := schema.get("multipleOf"), int | float) and of:
        multiples.add(_digits(of))
        if math.lcm(*multiples) > REMAINDERS:
            raise _refusal(
                place, "multipleOf", f"a number has more than {REMAINDERS} remainders by those in the schema"
            )
    checked = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
    for keyword in checked.keys() & (ONE | MANY | NAMED):
        checked[keyword] = _checked_inside(
            checked[keyword], f"{place}/{keyword}", keyword, places, references, multiples
        )
    others = checked.get("allOf", [])
    if isinstance(others, list) and (more := FORMATS.get(str(checked.get("format")))):
        checked["allOf"] = [*others, *more]
    return checked


def _checked_inside(value: Any, place: str, keyword: str, *state: Any) -> Any:
    if isinstance(value, list):
        return [_check(schema, f"{place}/{index}", *state) for index, schema in enumerate(value)]
    if keyword in NAMED and isinstance(value, dict):
        return {name: _check(schema, f"{place}/{_escaped(name)}", *state) for name, schema in value.items()}
    return _check(value, place, *state)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _check_values(schema: dict[str, Any], place: str) -> None:
    kind = schema.get("format")
    if isinstance(kind, str) and kind not in FORMATS:
        raise _refusal(place, "format", f"{kind!r} is none of those that are enforced: {', '.join(FORMATS)}")
    least, required = schema.get("minProperties"), schema.get("required", [])
    if isinstance(least, int) and isinstance(required, list) and least > 1 + len({*map(str, required)}):
        raise _refusal(place, "minProperties", "a key that comes twice would count as two: name keys in `required`")
    for keyword, values in (("const", schema.get("const")), ("enum", schema.get("enum"))):
        if UNWRITABLE.search(json.dumps(values, ensure_ascii=False)):
            raise _refusal(place, keyword, "a control character in it cannot be written")
    for keyword, pattern in _patterns(schema):
        for characters in CLASS.findall(pattern):
            if CLASS_OPERATION.search(characters, 1):
                raise _refusal(place, keyword, f"escape '[', '&&', '--' and '~~' inside of {characters}")


def _digits(number: float) -> int:
    """The number without its sign and its point: 25 for 0.25."""
    exact = Decimal(str(number)) if isinstance(number, float) else Decimal(number)
    exponent = exact.as_tuple().exponent
    assert isinstance(exponent, int)  # JSON has finite numbers alone
    return int(exact.copy_abs().scaleb(-min(exponent, 0)))


def _patterns(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(schema.get("pattern"), str):
        yield "pattern", schema["pattern"]
    if isinstance(schema.get("patternProperties"), dict):
        yield from (("patternProperties", pattern) for pattern in schema["patternProperties"])
