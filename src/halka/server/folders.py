"""`Folders`: the folders of a server, of which a message to a client has a path's last part alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

ABSOLUTE = re.compile(r"(?<![\w#.:/])(?:[A-Za-z]:)?[/\\](?!v1/)(?:[^\s/\\'\",:;]+[/\\])+([^\s/\\'\",:;]*)")
RELATIVE = re.compile(r"(?<![^\s'\"(,;])(?!#)(?:[^\s/\\'\",:;()]+[/\\])+([^\s/\\'\",:;()]+\.[A-Za-z]\w*)(?![\w/\\-])")
"""A file below a folder, such as run/adapter.safetensors; a model on the hub, such as org/Name-1.7B, is none."""


class Folders:
    """Folders whose paths may hold anything, spaces too. What is below them has names without."""

    def __init__(self, folders: Iterable[Path] = ()):
        paths = {form for folder in folders for form in (folder, folder.resolve()) if form != Path(form.anchor)}
        names = sorted({form for path in paths for form in (str(path), repr(str(path))[1:-1])}, key=len, reverse=True)
        own = "|".join(map(re.escape, names))
        self._below = re.compile(rf"(?<![\w.-])({own})(?![\w-])((?:/[^\s/'\",:;()]+)*)/?") if names else None

    def hidden(self, text: str) -> str:
        """The text with the last part of each path alone, of these folders and whatever else looks like one."""
        if self._below is not None:
            text = self._below.sub(lambda match: (match[2] or match[1]).rpartition("/")[2], text)
        return RELATIVE.sub(r"\1", ABSOLUTE.sub(r"\1", text))

    def hidden_in(self, value: Any) -> Any:
        """A value of JSON whose texts are hidden."""
        return with_texts(value, self.hidden)


NO_FOLDERS = Folders()


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A value of JSON whose texts, but for its keys, are changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: with_texts(item, change) for key, item in value.items()}
    return [with_texts(item, change) for item in value] if isinstance(value, list | tuple) else value
