"""Tables of training: speed, packed batches, memory, other forms of a base, several processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def speed(found: Any) -> list[list[str]]:
    """Training beside transformers' Trainer with peft."""
    rows = [["Method", "Useful tokens/s", "peft", "Ratio", "Memory beyond the base", "peft"]]
    for name, pair in found.items():
        if "halka" not in pair:  # other tasks alone are measured
            continue
        ours, theirs = pair["halka"], pair["peft"]
        rows.append(
            [
                name,
                f"{ours['tokens_per_second']:.0f}",
                f"{theirs['tokens_per_second']:.0f}",
                f"{pair['speed_ratio']:.2f}",
                f"{ours['memory'] / 1e6:.0f} MB",
                f"{theirs['memory'] / 1e6:.0f} MB",
            ]
        )
    return rows


def speed_sides(found: Any) -> list[list[str]]:
    """Training on the same batches in Halka, Trainer and TRL."""
    from evidence_parts.results import processor

    orders = {"random": "random", "grouped": "by length"}
    head = ["Task", "Method", "Batches", "Side", "Useful tokens/s", "Halka ÷ side", "Memory beyond the base"]
    rows = [[*head, "Validation loss", "Processor"]]
    for method, pair in found.items():
        for task, by_order in pair.get("tasks", {}).items():
            for order, latest in by_order.items():
                seeds_of = pair.get("losses", {}).get(task, {}).get(order, {}).get("sides", {})
                for each in (latest, *latest.get("elsewhere", [])):
                    cpu = processor(each["setup"]["machine"])
                    for side, medians in each["sides"].items():
                        ratio = f"{each['halka_to'][side]['speed']:.2f}" if side in each["halka_to"] else "–"
                        memory, speed = f"{medians['memory'] / 1e6:.0f} MB", f"{medians['tokens_per_second']:.0f}"
                        seeds = [run["validation_loss"] for run in each["runs"][side]]
                        seeds = seeds_of.get(side, seeds) if each is latest else seeds
                        loss = f"{min(seeds):.3f}–{max(seeds):.3f}"
                        rows.append([task, method, orders[order], side, speed, ratio, memory, loss, cpu])
    return rows


def packing_steps(found: Any) -> list[list[str]]:
    """From padded batches to packed ones, a change at a time."""
    head = ["Task", "Batches", "Computed tokens, of useful ones", "Useful tokens/s", "Gain", "Gain in all"]
    rows = [[*head, "Memory, of the first"]]
    for task, ways in found["tasks"].items():
        for way, each in ways.items():
            gains = [f"{each[key]:.2f}" for key in ("gain", "gain_in_all", "memory_of_first")]
            rows.append([task, way, f"{each['computed']:.2f}", f"{each['tokens_per_second']:.0f}", *gains])
    return rows


def packing_grid(found: Any) -> list[list[str]]:
    """The worst difference between packed and padded batches, by what the cases have, by method and by architecture."""
    rows = [["Packed beside padded, fp32", "Cases", "Worst relative difference"]]
    of = f" of {found['possible']:,}" if found["possible"] > found["cases"] else ""
    count = f"{found['cases']:,}{of}"
    rows.append([f"all, at commit {found['setup']['commit']}", count, f"{found['worst']:.1e}"])
    for way, worst in (found["worst_case_beside_float64"] or {}).items():
        rows.append([f"the worst case, {way}, beside padded in float64", "1", f"{worst:.1e}"])
    for dimension, value, words in (
        ("window", "True", "with a window shorter than the texts"),
        ("checkpointing", "True", "with layers computed again in backward"),
        ("quantize", "int8", "on int8 linear layers"),
    ):
        each = found["by"][dimension][value]
        rows.append([words, f"{each['cases']:,}", f"{each['worst']:.1e}"])
    for dimension in ("method", "architecture"):
        for name, each in found["by"][dimension].items():
            rows.append([f"{dimension} {name}", f"{each['cases']:,}", f"{each['worst']:.1e}"])
    return rows


def packing_memory(found: Any) -> list[list[str]]:
    """Peaks beyond the base of batches that share more and more, each beside its estimate."""
    rows = [["Examples", "Useful tokens", "Computed", "Peak, packed", "Estimated", "Peak, padded", "Estimated"]]
    for case in found["cases"]:
        packed = case["packed"]
        shared = f"{case['shared']:,} shared tokens, {case['own']} of their own" if case["shared"] else "nothing shared"
        sizes = (f"{case[way][key] / 1e6:,.0f} MB" for way in ("packed", "padded") for key in ("peak", "estimated"))
        rows.append([shared, f"{packed['useful']:,}", f"{packed['computed']:,}", *sizes])
    return rows


def together(found: Any) -> list[list[str]]:
    """Training four adapters in one go."""
    rows = [
        ["Examples a batch", "Batches", "Time, of one after another", "Memory beyond the base, of one after another"]
    ]
    for each in found["found"]:
        batches = "the same (one seed)" if each["seeds"] == "same" else "others (own seeds)"
        rows.append(
            [str(each["examples_a_batch"]), batches, f"{each['time_ratio']:.2f}", f"{each['memory_ratio']:.2f}"]
        )
    return rows


def merging(found: Any) -> list[list[str]]:
    """What merging changes, in each precision of the base."""
    rows = [
        [
            *("Base in", "Adapter", "Merged beside unmerged", "Of the effect (KL)", "The effect"),
            *("Rounding alone", "Peft's merge", "Elements changed after unmerging", "Peft's"),
        ]
    ]
    for dtype, adapters in found["errors"].items():
        for name, pair in adapters.items():
            ours, theirs = pair["halka"], pair["peft"]
            gaps = [ours["error"], ours["effect"], ours["noise"], theirs["error"]]
            error, effect, noise, peft = (f"{each['max']:.2g}" for each in gaps)
            share = f"{ours['relative']:.2g}" if ours["relative"] < 1e-4 else f"{ours['relative']:.2%}"
            changed = [f"{each['changed']:.2%}" if each["changed"] else "0" for each in (ours, theirs)]
            rows.append([dtype, name, error, share, effect, noise, peft, *changed])
    return rows


def combining(found: Any) -> list[list[str]]:
    """What is left of two adapters in one: losses on both tasks."""
    tasks = list(found["combined"][0]["loss"])
    count = found["combined"][0]["examples"]
    rows = [["Adapter", *(f"Loss on {task} ({count} examples)" for task in tasks)]]
    for each in found["combined"]:
        rows.append([each["adapter"] or "the bare base", *(f"{each['loss'][task]:.3f}" for task in tasks)])
    return rows


def quantised(found: Any) -> list[list[str]]:
    """A base in fewer bits."""
    head = ["Form", "Quantised layers", "Of bf16", "All weights", "Process, after a pass", "Perplexity"]
    head += ["Training tokens/s", "Decoding tokens/s"]
    return [head] + [
        [
            name,
            f"{each['layers_bytes'] / 1e6:.0f} MB",
            f"{each['of_bf16']:.2f}",
            f"{each['all_bytes'] / 1e6:.0f} MB",
            f"{each['grew_by'] / 1e6:.0f} MB",
            f"{each['perplexity']:.1f}",
            f"{each['training_tokens_per_second']:.0f}",
            f"{each['decoding_tokens_per_second']:.1f}",
        ]
        for name, each in found["forms"].items()
    ]


def quantised_runs(found: Any) -> list[list[str]]:
    """The same LoRA trained on each form."""
    from halka.report.units import bounds

    rows = [["LoRA r16", "Score", "Runs"]]
    for each in found["rows"]:
        score = each["scores"][found["primary"]["name"]]
        rows.append(
            [
                each["label"].removeprefix("LoRA r16 "),
                f"{100 * score['value']:.1f} % {bounds(score['low'], score['high'])}",
                str(each["runs"]),
            ]
        )
    return rows


def precision(found: Any) -> list[list[str]]:
    """A training step in two precisions, by kinds of processors."""
    from halka.report.units import step_time

    rows = [["Processor", "A step in float32", "in bfloat16", "Ratio"]]
    for row in found["rows"]:
        seconds = (step_time(row["seconds"][precision]) for precision in ("float32", "bfloat16"))
        rows.append([row["processor"], *seconds, f"{row['ratio']:.1f}"])
    return rows


def experts(found: Any) -> list[list[str]]:
    """LoRA on a mixture's experts."""
    names = {
        "bare base": "the bare base",
        "grouped": "one adapter",
        "one at a time": "the same, one expert and row at a time",
        "peft": "the same in peft",
        "grouped, an adapter a row": "an adapter a row",
        "one at a time, an adapter a row": "the same, one expert and row at a time",
    }
    columns = ("training step", "forward", "8 tokens a row")
    rows = [["ms", "Training step", "Forward", "Decoding 8 tokens a row"]]
    for way, name in names.items():
        rows.append([name, *(f"{found['ms'][way][each]:.0f}" if each in found["ms"][way] else "–" for each in columns)])
    return rows


def _processes(row: Any) -> str:
    """The form of a run on several processes."""
    if row["processes"] == 1:
        return "1 process"
    return f"{row['processes']} processes, base {'in parts' if row['parts'] else 'whole on each'}"


def _difference(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def distributed(found: Any) -> list[list[str]]:
    """Memory of each process that trains with others."""
    rows = [["", "Base", "of it, whole", "Loading it, at most", "LoRA, at most", "Full, at most"]]
    full = {_processes(row): row for row in found.get("full", ())}
    for row in found["lora"]:
        other = full.get(_processes(row))
        cells = [max(row[key]) for key in ("base", "whole", "peak_loading", "peak_training")]
        cells += [] if other is None else [max(other["peak_training"])]
        rows.append([_processes(row), *(f"{cell / 1e6:,.0f} MB" for cell in cells), *["–"] * (5 - len(cells))])
    return rows


def distributed_losses(found: Any) -> list[list[str]]:
    """Losses on several processes beside those of one."""
    rows = [["Largest difference of a loss", "Method", "fp32", "bf16", "Noise in bf16"]]
    for method, name in {"lora": "LoRA", **{name: name for name in ("bottleneck", "prefix", "prompt", "full")}}.items():
        for row in found.get(method, ()):
            if row["processes"] > 1:
                rows.append([_processes(row), name, *(_difference(row[key]) for key in ("fp32", "bf16", "noise"))])
    return rows


def distributed_killed(found: Any) -> list[list[str]]:
    """Runs that were killed and resumed on other numbers of processes."""
    rows = [["Base", "Method", "Difference of the last loss", "Written adapter read by", "Difference of its logits"]]
    for form, ended in found.get("killed", {}).items():
        for name, loss in ended["loss"].items():
            logits = ended["logits"][name]
            rows.append([form, name, _difference(loss), logits["reader"], _difference(logits["worst"])])
    return rows


TABLES: dict[str, tuple[str, Callable[[Any], list[list[str]]]]] = {
    "speed": ("speed", speed),
    "speed_sides": ("speed", speed_sides),
    "packing_steps": ("packing_steps", packing_steps),
    "packing_grid": ("packing_grid", packing_grid),
    "packing_memory": ("packing_memory", packing_memory),
    "together": ("together", together),
    "merging": ("merging", merging),
    "combining": ("merging", combining),
    "quantised": ("quantised", quantised),
    "quantised_runs": ("quantised/summary", quantised_runs),
    "precision": ("precision", precision),
    "experts": ("experts", experts),
    "distributed": ("distributed", distributed),
    "distributed_losses": ("distributed", distributed_losses),
    "distributed_killed": ("distributed", distributed_killed),
}
