"""How many parameters LoRA trains and what that saves, from 0.1 to 175 billion: counts, and the estimator's figures."""

from __future__ import annotations

import re
from typing import Any

from evidence_parts.part import Block, Missing, Notes, Part, table
from evidence_parts.results import Results
from halka.estimating.devices import device_named
from halka.report.table import NOTHING, Cell
from halka.report.units import count, listed, percent, size, step_time

CLAIM = 1000  # times fewer
METHODS = {("full", None): "full", ("lora", None): "LoRA r16", ("lora", "nf4"): "LoRA r16 on NF4"}
PAPER = "GPT-3 175B"


def parameters(results: Results) -> Part:
    """“A thousand times fewer parameters”: where it holds."""
    title = "“A thousand times fewer parameters”"
    large = results.file("large_bases")
    if large is None:
        return Part("parameters", title, (Missing(("python benchmarks/large_bases.py",)),))
    lines = [
        (row["base"], "LoRA r16, all linear layers", row["trained"], row["parameters"])
        for row in large["rows"]
        if row["method"] == "lora" and not row["quantize"]
    ]
    lines += [
        (PAPER, f"LoRA r{row['rank']}, queries and values", row["trained"], row["trained"] / row["share"])
        for row in large["gpt3"]
    ]
    rows = [
        (
            Cell(base),
            Cell(method),
            Cell(count(trained), trained),
            Cell(percent(trained / total), trained / total),
            Cell(f"{total / trained:,.0f} times", total / trained),
        )
        for base, method, trained, total in lines
    ]
    holds = [
        f"{base} ({method}: {total / trained:,.0f} times)"
        for base, method, trained, total in lines
        if total / trained >= CLAIM
    ]
    here, last = lines[0], max((line for line in lines if line[0] != PAPER), key=lambda line: line[3])
    blocks: tuple[Block, ...] = (
        table(("Base", "Method", "Trained", "Share", "Fewer than full"), rows),
        Notes(
            (
                f"At rank 16 on all linear layers LoRA trains {percent(here[2] / here[3])} of {here[0]}'s parameters, "
                f"{here[3] / here[2]:,.0f} times fewer than full fine-tuning, and {percent(last[2] / last[3])} of "
                f"{last[0]}'s, {last[3] / last[2]:,.0f} times fewer.",
                f"A thousand times fewer or more holds of {listed(holds)}."
                if holds
                else "A thousand times fewer holds of none of these.",
                f"{PAPER}'s ranks and places are those of LoRA's paper (arXiv:2106.09685).",
                "What the share depends on: an adapted layer of d inputs and k outputs trains r·(d + k) numbers in "
                "place of d·k, so it falls as layers become wider, rises with the rank and with the layers that are "
                "adapted, and falls with a vocabulary whose embedding is left alone.",
                *_memory(large["rows"], here[0], last[0]),
            )
        ),
    )
    return Part("parameters", title, blocks)


def _memory(rows: list[dict[str, Any]], *bases: str) -> list[str]:
    """How much less memory that is, which is another figure."""
    by = {(row["base"], row["method"], row["quantize"]): row["memory"] for row in rows}
    parts = [
        f"{by[base, 'full', None] / by[base, 'lora', None]:.1f} times on {base}"
        for base in bases
        if (base, "full", None) in by and (base, "lora", None) in by
    ]
    return [f"Memory of training falls by less than that, by estimate: {listed(parts)}."] if parts else []


def costs(results: Results) -> Part:
    """Memory, time and price of tuning, by estimate, beside what others have published."""
    title = "Large bases, by estimate"
    large, plans, estimator = (results.file(name) for name in ("large_bases", "plans", "estimator"))
    blocks: list[Block] = []
    if large is None:
        blocks.append(Missing(("python benchmarks/large_bases.py",)))
    else:
        price = plans["assumptions"]["gpu_hour"] if plans else None
        card = device_named("h100").memory or 0
        priced = f"; an H100 at {price:g} $ an hour, which is an assumption" if price else ""
        least = min([1.0, *_ratios(estimator["published"])] if estimator else [1.0])
        perhaps = f"; perhaps: by what was published it may take up to {1 / least:.1f} times that" if least < 1 else ""
        blocks.append(
            table(
                ("Base", "Method", "Memory", "Fits an H100", "A step", "A million tokens"),
                [_line(row, large["length"], price, card, least) for row in large["rows"]],
                f"Estimates, no measurements: one row of {large['length']:,} tokens, gradient "
                f"checkpointing, bf16{priced}. What fits is by its {size(card)}{perhaps}.",
            )
        )
        blocks.append(_largest(large["rows"], card, least))
        if price is None:
            blocks.append(Missing(("python benchmarks/plans.py",), "the price of a GPU's hour"))
    if estimator is None:
        blocks.append(Missing(("python benchmarks/estimator.py",), "estimates beside published figures"))
    else:
        blocks += _published(estimator["published"])
    return Part("costs", title, tuple(blocks))


def _line(row: dict[str, Any], length: int, price: float | None, card: int, least: float) -> list[str | Cell]:
    """`least`: what estimates were of published figures at least."""
    tokens = 1e6 * row["seconds"] / length / 3600 * price if price else None
    return [
        row["base"],
        METHODS[row["method"], row["quantize"]],
        Cell(size(row["memory"]), row["memory"]),
        "yes" if row["memory"] <= card * least else "perhaps" if row["memory"] <= card else "no",
        Cell(step_time(row["seconds"]), row["seconds"]),
        NOTHING if tokens is None else Cell(f"{tokens:#.2g} $", tokens),
    ]


def _largest(rows: list[dict[str, Any]], card: int, least: float) -> str:
    """The largest base that one card holds, by method, where estimates were `least` of published figures."""
    parts = []
    for key, name in METHODS.items():
        fits = [row for row in rows if (row["method"], row["quantize"]) == key and row["memory"] <= card * least]
        parts += [f"{name} up to {max(fits, key=lambda row: row['parameters'])['base']}"] if fits else []
    spare = f", with room for {1 / least:.1f} times it" if least < 1 else ""
    return f"By estimate{spare}, one H100 holds {listed(parts) if parts else 'none of these'}."


def _by_published(row: dict[str, Any]) -> float | None:
    """The estimate by the published figure, where that is one number."""
    gigabytes = re.fullmatch(r"([\d.]+) GB?", row["published"])
    return row["estimated"] / 1e9 / float(gigabytes[1]) if gigabytes else None


def _ratios(rows: list[dict[str, Any]]) -> list[float]:
    return [ratio for row in rows if (ratio := _by_published(row)) is not None]


def _published(rows: list[dict[str, Any]]) -> list[Block]:
    """The estimates beside published figures, and how far apart they are where the figure is one number."""
    lines = []
    for row in rows:
        ratio = _by_published(row)
        shown = NOTHING if ratio is None else Cell(f"{ratio:.2f}", ratio)
        lines.append([row["case"], size(row["estimated"]), row["published"], shown, row["source"]])
    head = ("Run", "Estimated for Halka", "Published", "Estimated by published", "By")
    ratios = _ratios(rows)
    if not ratios:
        return [table(head, lines)]
    words = (
        f"Estimates are {min(ratios):.2f} to {max(ratios):.2f} times what was published of other software, which keeps "
        "other things in memory."
    )
    return [table(head, lines), words]
