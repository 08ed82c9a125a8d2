"""What the form of an answer may be: any text, a JSON object, or JSON of a schema."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from halka.engine import Constraint
from halka.engine.constraint import JSON_OBJECT
from halka.server.errors import ApiError
from halka.server.requests import Body
from halka.server.wire import dumps

LARGEST = 64 << 10  # bytes of a schema in JSON: compiling it takes a while


class Text(Body):
    type: Literal["text"]


class JsonObject(Body):
    type: Literal["json_object"]


class Schema(Body):
    model_config = ConfigDict(serialize_by_alias=True)
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class JsonSchema(Body):
    type: Literal["json_schema"]
    json_schema: Schema


def constraint_of(form: Text | JsonObject | JsonSchema | None) -> Constraint | None:
    """What the engine must keep to; None: any text. A schema is always kept to, strict or not."""
    if isinstance(form, JsonObject):
        return JSON_OBJECT
    return keeping_to(form.json_schema.schema_, "response_format") if isinstance(form, JsonSchema) else None


def keeping_to(schema: dict[str, Any], param: str) -> Constraint:
    """The constraint to a schema that came as this field. Raises ApiError for one that is too large."""
    if (size := len(dumps(schema))) > LARGEST:
        message = (
            f"the schema to keep to has {size:,} bytes of JSON, over the {LARGEST:,} that one may have: shorten it"
        )
        raise ApiError(400, message, param=param)
    return Constraint(schema=schema)
