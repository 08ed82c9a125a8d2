"""`BareGeneration`: warns where the bare base generates although the model has adapters."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from halka.core import AdaptedModel


class BareGeneration:
    """Called with the arguments of passes outside of any `use`, it warns once."""

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, model: AdaptedModel, arguments: Mapping[str, Any]) -> None:
        cached = any(arguments.get(name) is not None for name in ("cache", "past_key_values"))
        generates = cached and arguments.get("use_cache") is True
        if self._warned or not generates or not model.adapters or model.merged is not None:
            return
        self._warned = True
        name = next(iter(model.adapters))
        warnings.warn(
            f"the bare base generates here, without any of the model's adapters ({', '.join(model.adapters)}): call "
            f"`base.generate` inside `with model.use({name!r}):`, or inside `with model.use(None):` if the bare base "
            "is meant",
            stacklevel=2,
        )
