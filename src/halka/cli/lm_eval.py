"""`halka lm-eval`: lm-eval's command line with an adapter as the model."""

from __future__ import annotations

from typing import Annotated

import typer

from halka.cli.command import examples
from halka.util.errors import HalkaError

EXAMPLES = examples(
    "halka lm-eval --model_args base=smollm2-135m,adapter=adapters/support --tasks hellaswag --limit 100",
    "halka lm-eval --model_args base=smollm2-135m,dtype=float32 --tasks my_task --include_path tasks --batch_size 8",
)
PASSED_ON = {"ignore_unknown_options": True}


def lm_eval(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENTS", help="lm-eval's own, as `lm-eval run --help` lists them")
    ] = None,
) -> None:
    """Score an adapter by lm-eval's tasks.

    `--model_args` names the base (a short name, folder or hub name) and the adapter's folder; without an adapter the
    bare base is scored, without a base the adapter on its own base. It also takes dtype, device, quantize,
    max_length and the like.
    """
    if not arguments:
        raise HalkaError("lm-eval needs arguments: give at least --model_args base=NAME and --tasks NAME")
    try:
        from halka.interop.lm_eval import main
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "halka":
            raise
        raise HalkaError(f"lm-eval needs {error.name}, which is not installed: pip install 'halka[lm-eval]'") from None
    main(arguments or [])
