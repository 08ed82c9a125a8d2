"""lm-eval's model `halka`: any adapter on its base, scored by any of lm-eval's tasks (`pip install 'halka[lm-eval]'`).

halka lm-eval --model_args base=smollm2-135m,adapter=adapters/support --tasks hellaswag
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from halka.core import AdaptedModel
from halka.models import adapt, context
from halka.models.loading import load_base
from halka.store import load
from halka.views import view

ADAPTER = "adapter"


@register_model("halka")
class HalkaLM(HFLM):
    """A base (name, folder) with the adapter of a folder, or an adapted model with the adapter of a name; or bare.

    Options are those of lm-eval's own `hf` that make sense for a model that is there already, such as `batch_size`.
    Raises ValueError as `halka.load_base` and `halka.load` do.
    """

    def __init__(
        self,
        base: str | AdaptedModel,
        adapter: str | None = None,
        *,
        dtype: str = "bfloat16",
        device: str | None = None,
        allow_other_base: bool = False,
        allow_other_template: bool = False,
        **options: Any,
    ):
        name = adapter
        if isinstance(base, AdaptedModel):
            model = base
        else:
            there = device is None or torch.cuda.is_available() or not device.startswith("cuda")
            model = adapt(*load_base(base, dtype=dtype, device=device if there else None))  # lm-eval says cuda:0 itself
            if adapter is not None:
                name = ADAPTER
                allowed = {"allow_other_base": allow_other_base, "allow_other_template": allow_other_template}
                load(model, adapter, name=name, **allowed)
        if model.tokenizer is None:
            raise ValueError("to be evaluated on text the model needs its tokenizer: `halka.adapt(base, tokenizer)`")
        options.setdefault("max_length", context(model, name))
        options |= {"pretrained": view(model, name), "tokenizer": model.tokenizer}
        super().__init__(**options)


def main(arguments: Sequence[str]) -> None:
    """lm-eval's command line with the model `halka` chosen; it reads `sys.argv` itself."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", "run", "--model", "halka", *arguments]
    cli_evaluate()
