"""A setting as plain data, of which a form or a list of flags can be made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halka.util.settings import Setting

TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", Path: "string"}


def form_of(setting: Setting) -> dict[str, Any]:
    """Its name, path in a file, flag, type as JSON Schema names it, choices, default and help.

    `many`: a list of such values; `optional`: null, too; `takes`: all that in words.
    """
    return {
        "name": setting.name,
        "path": setting.path,
        "flag": setting.flag,
        "type": TYPES[setting.item],
        "choices": list(setting.choices),
        "many": setting.many,
        "optional": setting.optional,
        "default": setting.default,
        "takes": setting.words,
        "help": setting.help,
    }
