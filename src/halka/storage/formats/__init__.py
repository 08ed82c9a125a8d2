"""Read and write adapter folders in each library's format: peft's (also Halka's own) and AdapterHub's.

A format is a module or package that implements `format.Format` and is listed in `FORMATS`. `gguf` and `model_folder`
only export; they are not adapter folder formats.
"""

from __future__ import annotations

from pathlib import Path

from halka.storage.formats import adapterhub, peft
from halka.storage.formats.format import BaseSpec, Contents, FileNames, Format, json_object
from halka.util.errors import HalkaError

__all__ = ["FORMATS", "BaseSpec", "Contents", "FileNames", "Format", "format_named", "format_of", "json_object"]

FORMATS: dict[str, Format] = {adapterhub.NAME: adapterhub, peft.NAME: peft}


def format_named(name: str) -> Format:
    """Return the format called `name`. Raises HalkaError with the valid names for any other."""
    if name not in FORMATS:
        raise HalkaError(f"there is no format {name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(folder: Path) -> Format:
    """Return the format whose files the folder holds; peft's, which `save` writes, if no format recognises it."""
    return next((format for format in FORMATS.values() if format.recognises(folder)), peft)
