"""A base with another chat template: a folder whose weights are links to the base's, and all else is its own."""

from __future__ import annotations

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

from halka.models.loading import HUB_FILES, read_tokenizer, weight_files
from halka.util.errors import HalkaError
from halka.util.files import check_writable, new_folder, write_text

TEMPLATE = "chat_template.jinja"
TEMPLATES = (TEMPLATE, "chat_template.json")  # of a base's files those with a template alone
SETTINGS = "tokenizer_config.json"  # which may hold one, too


def check_new(folder: Path) -> None:
    """Raises HalkaError for a folder that exists, or cannot be made."""
    check_writable(folder)
    if folder.exists():
        raise HalkaError(f"{folder} exists already: choose another folder, or remove it")


def with_chat_template(origin: Path, folder: Path, template: str) -> None:
    """Write a folder with the base in `origin`, as `resolve` returns it, and this chat template.

    Weights are linked to, wherever they are, and take no room. Raises HalkaError as `load_base` does for a base that
    cannot be read, for a folder that exists, and where transformers does not read the template as it was written.
    """
    check_new(folder)
    weights = weight_files(origin)
    with new_folder(folder) as new:
        for file in sorted(origin.iterdir()):
            copied = any(fnmatch(file.name, one) for one in HUB_FILES) and file.suffix != ".safetensors"
            if copied and file.is_file() and file.name not in TEMPLATES:
                shutil.copyfile(file, new / file.name)
        for file in weights:
            (new / file.name).symlink_to(file.resolve())
        if (new / SETTINGS).is_file():
            settings = json.loads((new / SETTINGS).read_text(encoding="utf-8"))
            settings.pop("chat_template", None)
            write_text(new / SETTINGS, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        write_text(new / TEMPLATE, template)
        if read_tokenizer(new, origin).chat_template != template:
            raise HalkaError(f"the tokenizer in {origin} takes no chat template from a file: save the base with it")
