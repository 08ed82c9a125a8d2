"""`halka generate`: answer one prompt, streaming the answer, or a file of prompts."""

from __future__ import annotations

import sys
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halka.cli.adapter_names import (
    BARE,
    AdapterNames,
    PoolSize,
    StoreFolder,
    addressed,
    given_adapters,
    note_system,
    route,
)
from halka.cli.command import CONTROLS, Json, emit, examples, existing_file, show
from halka.cli.opening import Base, Loading, open_model, with_loading
from halka.util.errors import DataError, HalkaError

if TYPE_CHECKING:
    from halka.core import AdaptedModel
    from halka.data.examples import Example, Message
    from halka.data.readers import Row

EXAMPLES = examples(
    'halka generate --base smollm2-135m "What is a light year?"',
    "halka generate --base smollm2-135m --adapter runs/support/adapter --file prompts.jsonl --json",
    "halka generate --base smollm2-135m --adapter a=runs/a/adapter --adapter b=runs/b/adapter --file prompts.jsonl",
    'halka generate --base smollm2-135m --store adapters --adapter support "Where is my parcel?"',
    'halka generate --base smollm2-135m "Rate: great shop!" --schema \'{"type": "object", "properties": {"stars": '
    '{"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["stars"]}\'',
    'halka generate --base smollm2-135m --file reviews.jsonl --regex "good|bad"',
    'echo "Where is my parcel?" | halka generate --base smollm2-135m --temperature 0.7 --seed 1',
)

MaxNewTokens = Annotated[int, typer.Option(metavar="N", min=1, help="the most tokens of an answer")]
Temperature = Annotated[
    float, typer.Option(metavar="X", min=0.0, help="0: always the most likely token; above 0: sample")
]
TopP = Annotated[
    float | None,
    typer.Option(metavar="X", help="sample among the most likely tokens that hold this share of probability"),
]
Seed = Annotated[int | None, typer.Option(metavar="N", min=-(2**63), max=2**63 - 1, help="makes sampling repeatable")]


@with_loading
def generate(
    base: Base,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="else --file, or standard input")] = None,
    file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='rows of any shape that is trained on, and "adapter" where they name one'),
    ] = None,
    adapter: AdapterNames = None,
    store: StoreFolder = None,
    pool: PoolSize = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="a system message before each prompt")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    schema: Annotated[
        str | None,
        typer.Option(metavar="FILE|JSON", help="answers are JSON of this schema; needs halka[engine], as --regex does"),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(metavar="REGEX", help="answers match this regular expression from end to end")
    ] = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="prompts of a file at a time")] = 32,
    *,
    loading: Loading,
    json: Json = False,
) -> None:
    """Answer a prompt, or each prompt of a file.

    A row of the file may name its adapter in the field "adapter"; other rows are answered by the --adapter without
    NAME=, or by the bare base. If no row has the field, every --adapter answers.
    """
    options = sampling(temperature, top_p) | constrained(schema, regex)
    adapters = given_adapters(adapter, store, loading.allow_pickle)
    prompts, names = route(prompts_from(prompt, file, system), adapters)
    asked = zip(names, prompts, strict=True)
    note_system(adapters, [name for name, prompt in asked if prompt.messages[0].role != "system"])
    model = open_model(base, adapters, names, loading, pool=pool)
    if seed is not None:
        import torch

        torch.manual_seed(seed)
    if file is not None or len(prompts) > 1:
        answers = answer_all(model, names, prompts, max_new_tokens, batch_size, options)
        emit(answers) if json else _show(answers)
    elif json or model.labels:
        (answer,) = answer_all(model, names, prompts, max_new_tokens, 1, options)
        emit(answer) if json else show(answer["answer"])
    else:
        stream(model, names[0], prompts[0], max_new_tokens, options)


def sampling(temperature: float, top_p: float | None) -> dict[str, Any]:
    """The options of transformers' `generate` for sampling. Raises HalkaError for those that do not fit."""
    if top_p is not None and not 0 < top_p <= 1:
        raise HalkaError(f"--top-p is a share above 0 and at most 1, not {top_p}")
    if temperature == 0:
        if top_p is not None:
            raise HalkaError("--top-p is for sampling: give a --temperature above 0 with it")
        return {}
    return {"do_sample": True, "temperature": temperature, "top_p": top_p}


def constrained(schema: str | None, regex: str | None) -> dict[str, Any]:
    """The constraint that answers keep to, if there is one. Raises HalkaError for both, and for what is no schema."""
    if schema is None and regex is None:
        return {}
    if schema is not None and regex is not None:
        raise HalkaError("--schema and --regex were given: give one of them")
    parsed = None if schema is None else _schema(schema)
    from halka.engine.constraint import Constraint

    return {"constraint": Constraint(parsed, regex)}


def _schema(schema: str) -> dict[str, Any]:
    """A JSON Schema, or the one in a file."""
    file = None if schema.lstrip().startswith("{") else existing_file(Path(schema), "--schema")
    try:
        parsed = loads(schema if file is None else file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise HalkaError(f"--schema: {'this' if file is None else file} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise HalkaError(f'--schema: {file} holds no JSON object: a schema is one, such as {{"type": "object"}}')
    return parsed


def prompts_from(prompt: str | None, file: Path | None, system: str | None) -> list[Example]:
    """The prompts as conversations. Raises HalkaError if there is none, or both a prompt and a file."""
    from halka.data.examples import Example
    from halka.data.messages import as_message
    from halka.data.readers import TEXTS, whole_rows

    before = () if system is None else (as_message({"role": "system", "content": system}, "--system"),)
    if file is not None:
        if prompt is not None:
            raise HalkaError("a PROMPT and --file were given: give one of them")
        if file.suffix.lower() in TEXTS:
            raise HalkaError(f"--file: {file} is a text, and prompts are rows: give it as PROMPT, or rows as .jsonl")
        rows = whole_rows(existing_file(file, "--file"))
        own = [(row, _messages(row)) for row in rows]
        prompts = [
            Example((*(() if messages[0].role == "system" else before), *messages), where=row.where)
            for row, messages in own
        ]
        if not prompts:
            raise HalkaError(f"--file: {file} has no rows")
        return addressed(prompts, rows)
    if prompt is None and sys.stdin.isatty():
        raise HalkaError('there is no prompt: give one, such as "What is a light year?", or --file FILE')
    text = sys.stdin.read().strip() if prompt is None else prompt
    if not text.strip():
        raise HalkaError("the prompt is empty: give some text, or --file FILE")
    return [Example((*before, as_message({"role": "user", "content": text}, "the prompt")))]


def _messages(row: Row) -> list[Message]:
    """The conversation of a row, without its final answer."""
    from halka.data.shapes import prompt_of

    try:
        return prompt_of(row)
    except DataError as error:
        raise HalkaError(f"{row.where}: {error}") from None


def answer_all(
    model: AdaptedModel,
    names: list[str | None],
    prompts: list[Example],
    tokens: int,
    batch_size: int,
    options: dict[str, Any],
) -> list[dict[str, str | None]]:
    """Every prompt with its answer, in order."""
    from halka.cli.progress import CountProgress
    from halka.evaluation.generation import answers_of

    with CountProgress("answers", len(prompts)) as progress:
        options = {"max_new_tokens": tokens, "batch_size": batch_size, **options}
        answers = answers_of(model, names, prompts, on_progress=progress.done, **options)
    return [
        {"where": prompt.where, "adapter": name, "prompt": prompt.prompt[-1].content, "answer": answer}
        for prompt, name, answer in zip(prompts, names, answers, strict=True)
    ]


def stream(model: AdaptedModel, name: str | None, prompt: Example, tokens: int, options: dict[str, Any]) -> None:
    """Stream one answer to stdout, as it is made."""
    from halka.evaluation.generation import stream_answer

    for piece in stream_answer(model, name, prompt, max_new_tokens=tokens, **options):
        typer.echo(CONTROLS.sub("", piece), nl=False)
    typer.echo()


def _show(answers: list[dict[str, str | None]]) -> None:
    several = len({row["adapter"] for row in answers}) > 1
    for row in answers:
        by = (row["adapter"] or BARE) if several else None
        place = ", ".join(filter(None, (row["where"], by)))
        show(f"── {place}: {row['prompt']}", row["answer"], "")
