"""A small validator of JSON Schemas, written from the specification: what llguidance lets through is checked by it."""

from __future__ import annotations

import ipaddress
import json
import re
import uuid
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

KINDS = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, Decimal) and Fraction(value).denominator == 1,
    "number": lambda value: isinstance(value, Decimal),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
HOST = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*"
CLOCK = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?([zZ]|[+-]([01]\d|2[0-3]):[0-5]\d)"
DURATION = r"P(?!$)(\d+W|(\d+Y(\d+M(\d+D)?)?|\d+M(\d+D)?|\d+D)?(T(?!$)(\d+H(\d+M(\d+S)?)?|\d+M(\d+S)?|\d+S))?)"


def matches(expression: str):
    return lambda text: re.fullmatch(expression, text, re.ASCII) is not None


def parses(parse):
    def check(text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    return check


FORMATS = {
    "date": lambda text: matches(r"\d{4}-\d\d-\d\d")(text) and parses(date.fromisoformat)(text),
    "time": matches(CLOCK),
    "date-time": lambda text: matches(rf".{{10}}[tT]{CLOCK}")(text) and parses(datetime.fromisoformat)(text[:19]),
    "duration": matches(DURATION),
    "email": lambda text: matches(rf"[^@\s\"]+@({HOST}|\[.*\])")(text) and ".." not in text,
    "hostname": lambda text: len(text) <= 253 and matches(HOST)(text),
    "ipv4": parses(ipaddress.IPv4Address),
    "ipv6": parses(ipaddress.IPv6Address),
    "uri": matches(r"[a-zA-Z][a-zA-Z0-9+.-]*:[^\s<>\"{}|\\^`]*"),
    "uuid": lambda text: len(text) == 36 and parses(uuid.UUID)(text),
}


def read(text: str) -> Any:
    """A JSON text with exact numbers; of a key that comes twice the last counts."""
    return json.loads(text, parse_int=Decimal, parse_float=number_of)


def number_of(text: str) -> Decimal:
    """The number; one with a long exponent, which no schema here limits, as some large one."""
    exponent = re.search(r"[eE][+-]?(\d+)$", text)
    return Decimal(10**400) if exponent and len(exponent[1]) > 3 else Decimal(text)


def valid(value: Any, schema: Any, root: Any = None) -> bool:
    """Whether a value, as `read` gives it, is one of the schema."""
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema

    def fits(value: Any, schema: Any) -> bool:
        return valid(value, schema, root)

    kinds = schema.get("type", list(KINDS))
    return (
        any(KINDS[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds))
        and ("const" not in schema or same(value, schema["const"]))
        and ("enum" not in schema or any(same(value, one) for one in schema["enum"]))
        and ("$ref" not in schema or fits(value, resolved(schema["$ref"], root)))
        and all(fits(value, one) for one in schema.get("allOf", ()))
        and ("anyOf" not in schema or any(fits(value, one) for one in schema["anyOf"]))
        and ("oneOf" not in schema or sum(fits(value, one) for one in schema["oneOf"]) == 1)
        and (not isinstance(value, str) or valid_string(value, schema))
        and (not isinstance(value, Decimal) or valid_number(value, schema))
        and (not isinstance(value, list) or valid_array(value, schema, fits))
        and (not isinstance(value, dict) or valid_object(value, schema, fits))
    )


def same(value: Any, other: Any) -> bool:
    return value == read(json.dumps(other)) and isinstance(value, bool) == isinstance(other, bool)


def resolved(reference: str, root: Any) -> Any:
    for key in reference.removeprefix("#").split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        root = root[int(key)] if isinstance(root, list) else root[key]
    return root


def valid_string(text: str, schema: dict) -> bool:
    return (
        schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", len(text))
        and ("pattern" not in schema or re.search(schema["pattern"].replace("$", r"\Z"), text, re.ASCII) is not None)
        and ("format" not in schema or FORMATS[schema["format"]](text))
    )


def valid_number(number: Decimal, schema: dict) -> bool:
    limits = {key: Decimal(str(schema[key])) for key in schema if "imum" in key or key == "multipleOf"}
    return (
        number >= limits.get("minimum", number)
        and number <= limits.get("maximum", number)
        and ("exclusiveMinimum" not in limits or number > limits["exclusiveMinimum"])
        and ("exclusiveMaximum" not in limits or number < limits["exclusiveMaximum"])
        and ("multipleOf" not in limits or Fraction(number) % Fraction(limits["multipleOf"]) == 0)
    )


def valid_array(values: list, schema: dict, fits) -> bool:
    first = schema.get("prefixItems", [])
    return (
        schema.get("minItems", 0) <= len(values) <= schema.get("maxItems", len(values))
        and all(fits(value, one) for value, one in zip(values, first, strict=False))
        and all(fits(value, schema.get("items", True)) for value in values[len(first) :])
    )


def valid_object(values: dict, schema: dict, fits) -> bool:
    properties, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for key, value in values.items():
        schemas = [properties[key]] if key in properties else []
        schemas += [one for pattern, one in patterns.items() if re.search(pattern, key)]
        if not all(fits(value, one) for one in schemas or [schema.get("additionalProperties", True)]):
            return False
    return schema.get("minProperties", 0) <= len(values) <= schema.get(
        "maxProperties", len(values)
    ) and values.keys() >= {*schema.get("required", ())}
