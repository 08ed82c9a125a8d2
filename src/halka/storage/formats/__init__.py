"""Formats of adapter folders, Halka's own (which is peft's) and others': read, and written so that others read them.

A format is a module or package that has all of `format.Format`, listed in `FORMATS`. `gguf` and `model_folder` write
whole models and are none.
"""

from __future__ import annotations

from pathlib import Path

from halka.storage.formats import adapterhub, peft
from halka.storage.formats.format import BaseSpec, Contents, FileNames, Format, json_object
from halka.util.errors import HalkaError

__all__ = ["FORMATS", "BaseSpec", "Contents", "FileNames", "Format", "format_named", "format_of", "json_object"]

FORMATS: dict[str, Format] = {adapterhub.NAME: adapterhub, peft.NAME: peft}


def format_named(name: str) -> Format:
    """The format of that name. Raises HalkaError that lists the names there are."""
    if name not in FORMATS:
        raise HalkaError(f"there is no format {name!r}: choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_of(folder: Path) -> Format:
    """The format whose files a folder holds; peft's, in which `save` writes, where no format recognises it."""
    return next((format for format in FORMATS.values() if format.recognises(folder)), peft)
