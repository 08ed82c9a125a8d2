"""Self-contained HTML pages from templates; all text is escaped, and only the page's own script can run."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from halka.report.svg import css_variables
from halka.util.errors import HalkaError
from halka.util.files import write_bytes

UNITS = re.compile(r"(?<=\d) (?=(?:%|k|M|B|kB|MB|GB|TB|s|ms|min|h|points|tokens/s)(?!\w))")


def fill(
    template: str, styles: Sequence[str], scripts: Sequence[str], *, package: str = "halka.report", **variables: Any
) -> str:
    """Render the template with the variables, styles and scripts as one HTML page.

    template, styles, scripts   names of files in `package`, else in `halka.report`
    variables                   the template's; `page.html.j2`, which it extends, needs `title` and `headline`

    The content security policy allows the page's own script alone.
    """
    from markupsafe import Markup

    style, script = ("".join(_read(package, name) for name in names) for names in (styles, scripts))
    return render(
        template,
        package,
        **variables,
        light=Markup(css_variables(dark=False)),
        dark=Markup(css_variables(dark=True)),
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def render(template: str, package: str, **variables: Any) -> str:
    """The template with the variables, all text escaped; it may use those of `halka.report`."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(partial(_read, package)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["units"] = lambda text: UNITS.sub("\u00a0", text)
    return environment.get_template(template).render(**variables)


def _read(package: str, name: str) -> str:
    own = files(package).joinpath(name)
    return (own if own.is_file() else files("halka.report").joinpath(name)).read_text(encoding="utf-8")


def write_page(path: str | os.PathLike[str], render: Callable[[], str]) -> Path:
    """Write the page that `render` returns atomically to `path`, and return the path.

    Raises HalkaError if `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise HalkaError(f"{target} is a folder; name a file in it, such as {target / 'report.html'}")
    text = render()
    write_bytes(target, text.encode("utf-8", "replace"))
    return target
