"""The page's texts, read from their sources without Node.js."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from halka.server.page import BUILT

WORDS = BUILT.parent / "src" / "words"


def entries(path: Path) -> dict[str, str]:
    """The texts of a file of words, by their keys: "title", "tokens.one"."""
    texts, above = dict[str, str](), list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        opened, closed = re.match(r"\s+(\w+): \{", line), re.search(r"\},?$", line)
        above += [opened[1]] if opened else []
        pairs = re.findall(r'"?([\w-]+)"?: "((?:[^"\\]|\\.)*)"', line)
        texts |= {".".join([*above, key]): text for key, text in pairs}
        if closed and above:
            above.pop()
    return texts


def words_in(language: str) -> Callable[..., str]:
    """The texts in a language: `word("train.stored", name="support")`."""
    texts = {
        f"{path.stem}.{key}": text for path in (WORDS / language).glob("*.ts") for key, text in entries(path).items()
    }

    def word(key: str, **values: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda place: values[place[1]], texts[key])

    return word
