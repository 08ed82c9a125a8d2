"""Methods as plain data, for whoever has to choose one."""

from __future__ import annotations

import sys
from typing import Any

from halka.util.forms import form_of
from halka.util.settings import settings_of


def catalogued(method: type[Any]) -> dict[str, Any]:
    """A method of this package and its fields.

    `meaning` is the first line of its module's docstring, or of its own; `plain` says it to who has never trained a
    model.
    """
    meaning = sys.modules[method.__module__].__doc__ or method.__doc__ or method.name
    return {
        "name": method.name,
        "plain": method.plain,
        "meaning": meaning.strip().partition("\n")[0],
        "paper": method.paper,
        "lr": method.lr,
        "roles": list(method().roles()),
        "fields": [form_of(field) for field in settings_of(method).values()],
    }
