"""A page: one HTML file that needs nothing else, filled from a template, of which no text that was given can run."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from halka.report.svg import css_variables
from halka.util.errors import HalkaError
from halka.util.files import write_file

UNITS = re.compile(r"(?<=\d) (?=(?:%|k|M|B|kB|MB|GB|TB|s|ms|min|h|points|tokens/s)(?!\w))")


def fill(
    template: str, styles: Sequence[str], scripts: Sequence[str], *, package: str = "halka.report", **given: Any
) -> str:
    """The page that the template makes of what is given, with these styles and scripts.

    All are files of `package`, or else of `halka.report`. The template extends `page.html.j2`, which wants `title` and
    `headline`. Only the page's own script may run.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def read(name: str) -> str:
        own = files(package).joinpath(name)
        return (own if own.is_file() else files("halka.report").joinpath(name)).read_text(encoding="utf-8")

    script = "".join(map(read, scripts))
    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["units"] = lambda text: UNITS.sub("\u00a0", text)
    return environment.get_template(template).render(
        **given,
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
        style=Markup("".join(map(read, styles))),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write_page(path: str | os.PathLike[str], made: Callable[[], str]) -> Path:
    """Writes the page that `made` gives to `path`, whole or not at all, and returns the path.

    Raises ValueError where `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise HalkaError(f"{target} is a folder; name a file in it, such as {target / 'report.html'}")
    text = made()
    write_file(target, lambda beside: beside.write_bytes(text.encode("utf-8", "replace")))
    return target
