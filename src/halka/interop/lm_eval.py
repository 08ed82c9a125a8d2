"""lm-eval's model `halka`: any adapter on its base, scored by any of lm-eval's tasks (`pip install 'halka[lm-eval]'`).

halka lm-eval --model_args base=smollm2-135m,adapter=adapters/support --tasks hellaswag
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from halka.core import AdaptedModel
from halka.interop.views import view
from halka.models import adapt, context
from halka.models.kinds import kind_of
from halka.models.loading import load_base
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.save_load import load
from halka.util.dtypes import Dtype, Quantize
from halka.util.errors import HalkaError
from halka.util.suggest import suggest

ADAPTER = "adapter"
OF_LOADING = {
    *("pretrained", "tokenizer", "revision", "subfolder", "trust_remote_code", "use_fast_tokenizer", "gguf_file"),
    *("parallelize", "max_memory_per_gpu", "max_cpu_memory", "offload_folder", "tp_plan"),
    *("peft", "delta", "autogptq", "gptqmodel"),
}
"""Options of lm-eval's `hf` for loading a model, which have no effect here."""


@register_model("halka")
class HalkaLM(HFLM):
    """lm-eval's model of a base (name, folder) with an adapter's folder, or of an adapted model with an adapter's name.

    Without a base it is the one that the adapter's folder names, without an adapter the bare base. Options
    are those of lm-eval's own `hf` that apply to a loaded model, such as `batch_size`.
    Raises HalkaError as `halka.load_base` and `halka.load` do, for an option that would have no effect, and for a base
    that predicts no text.
    """

    def __init__(
        self,
        base: str | AdaptedModel | None = None,
        adapter: str | None = None,
        *,
        dtype: Dtype | Literal["auto"] = "bfloat16",
        device: str | None = None,
        quantize: Quantize | None = None,
        allow_other_base: bool = False,
        allow_other_template: bool = False,
        allow_pickle: bool = False,
        **options: Any,
    ):
        _check_options(options)
        name = adapter
        if isinstance(base, AdaptedModel):
            _check_loaded(
                dtype=dtype,
                device=device,
                quantize=quantize,
                allow_other_base=allow_other_base,
                allow_other_template=allow_other_template,
                allow_pickle=allow_pickle,
            )
            model = base
        else:
            if base is None:
                base = _base_of(adapter, allow_pickle)
            exists = device is None or torch.cuda.is_available() or not device.startswith("cuda")
            place = device if exists else None  # cuda:0 is lm-eval's default
            model = adapt(*load_base(base, dtype=dtype, device=place, quantize=quantize))
            if adapter is not None:
                name = ADAPTER
                load(
                    model,
                    adapter,
                    name=name,
                    allow_other_base=allow_other_base,
                    allow_other_template=allow_other_template,
                    allow_pickle=allow_pickle,
                )
        if model.tokenizer is None:
            raise HalkaError("to be evaluated on text the model needs its tokenizer: `halka.adapt(base, tokenizer)`")
        if (kind := kind_of(model.base)) not in ("causal-lm", "seq2seq-lm"):
            raise HalkaError(f"lm-eval scores the tokens of a text, which a {kind} does not predict: `halka evaluate`")
        options.setdefault("max_length", context(model, name))
        options |= {"pretrained": view(model, name), "tokenizer": model.tokenizer}
        super().__init__(**options)


def _base_of(adapter: str | None, allow_pickle: bool) -> str:
    """The base that an adapter's folder names. Raises HalkaError where there is none."""
    name = None if adapter is None else AdapterFolder.open(adapter, allow_pickle=allow_pickle).base_name
    if name is None:
        why = "there is no adapter to name one" if adapter is None else f"{adapter} does not say which"
        raise HalkaError(f"there is no base, and {why}: give base=NAME in --model_args")
    return name


def _check_loaded(**options: Any) -> None:
    """Raises HalkaError for an option of loading that is not its default, where the base is loaded already."""
    defaults = inspect.signature(HalkaLM.__init__).parameters
    for name, value in options.items():
        if value != defaults[name].default:
            raise HalkaError(
                f"{name} is for a base or an adapter as it is loaded, and these are loaded already: give {name} to "
                "halka.load_base or halka.load"
            )


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises HalkaError for options that lm-eval's `hf` does not have, or that only concern a model that it loads."""
    own, theirs = inspect.signature(HalkaLM.__init__).parameters, inspect.signature(HFLM.__init__).parameters
    names = sorted({*own, *theirs} - {"self", "options", "kwargs"} - OF_LOADING)
    for name in options:
        if name not in names:
            near = suggest(name, names)
            hint = f"did you mean {near}?" if near else f"there are {', '.join(names)}"
            raise HalkaError(f"{name!r} is no option of a model that Halka loads: {hint}")


def main(arguments: Sequence[str]) -> None:
    """Run lm-eval's command line, which reads `sys.argv`, with the model `halka`."""
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", "run", "--model", "halka", *arguments]
    cli_evaluate()
