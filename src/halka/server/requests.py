"""`Body`: what every JSON object has in common that clients send; names and labels in them.

A list ends at its first error (`fail_fast`): a body has room for a million, and to name all of them would keep every
other caller waiting for half a minute.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from halka.util.files import portable_name

ANY = "any value"  # of a field that changes nothing here

FIELDS, ITEMS = 1000, 10_000  # of an object, and of a conversation's lists, at most

Count = Annotated[int, Field(ge=1, lt=2**31)]
Label = Annotated[str, Field(pattern=r"^\w[\w.@:/+-]{0,199}$|^\*$")]  # of a reader or a tag: `rag.store.READER`
Labels = Annotated[list[Label], Field(max_length=64)]
Name = Annotated[str, Field(max_length=100), AfterValidator(lambda name: portable_name(name, "be a name"))]


class Body(BaseModel):
    """A JSON object whose optional fields may be null. An unknown field is an error.

    neutral  fields of OpenAI's that are not supported, with the values that ask for nothing; `ANY`: all do
    """

    model_config = ConfigDict(extra="forbid")
    neutral: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if len(data) > FIELDS:
            raise PydanticCustomError("too_many_fields", "an object has more than {most} fields", {"most": FIELDS})
        for name, values in cls.neutral.items():
            value = data.get(name)
            if value is not None and values is not ANY and value not in values:
                raise unsupported(name, f"it may be {', '.join(map(repr, values))}" if values else "leave it out")
        return {name: value for name, value in data.items() if name not in cls.neutral and not cls._unset(name, value)}

    @classmethod
    def _unset(cls, name: str, value: Any) -> bool:
        """Whether it is null, of a field whose default is something else, but empty: as if it were left out."""
        field = cls.model_fields.get(name)
        if value is not None or field is None or field.is_required():
            return False
        return field.default_factory is not None or field.default is False or field.default == ""


def unsupported(param: str, way_out: str) -> PydanticCustomError:
    """The error of a field that is OpenAI's and is not supported here."""
    context = {"param": param, "way_out": way_out}
    return PydanticCustomError("unsupported", "{param} is not supported here: {way_out}", context)
