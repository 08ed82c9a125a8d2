"""The tables of README and docs, made from the files in `benchmarks/results`.

`python tests/results_in_docs.py` writes them in place (scripts/fix does); `test_docs.py` holds them equal.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exchange

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", ROOT / "README.bn.md", *sorted((ROOT / "docs").glob("*.md")))
NOT_YET = "*Not measured yet.*\n"


def table(name: str) -> str:
    """An experiment's measurements as a Markdown table."""
    from halka.report.summary import summarise
    from halka.report.table import to_markdown
    from halka.studies.compare import measurements

    found = measurements(RESULTS / name)
    return to_markdown(summarise(found)) if found else NOT_YET


def ablation(name: str) -> str:
    """What adapter and retrieval bring, as a Markdown table and in sentences."""
    from halka.studies.ablation.summary import summarise, to_markdown

    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((RESULTS / name / "runs").glob("*.json"))]
    return to_markdown(summarise(runs)) if runs else NOT_YET


def speed(found: Any) -> list[list[str]]:
    """Training beside transformers' Trainer with peft."""
    rows = [["Method", "Useful tokens/s", "peft", "Ratio", "Memory beyond the base", "peft", "Validation loss", "peft"]]
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
                f"{ours['validation_loss']:.3f}",
                f"{theirs['validation_loss']:.3f}",
            ]
        )
    return rows


def speed_sides(found: Any) -> list[list[str]]:
    """Training on the same batches in Halka, Trainer and TRL."""
    orders = {"random": "random", "grouped": "by length"}
    head = ["Task", "Method", "Batches", "Side", "Useful tokens/s", "Halka ÷ side", "Memory beyond the base"]
    rows = [[*head, "Validation loss", "Processor"]]
    for method, pair in found.items():
        for task, by_order in pair.get("tasks", {}).items():
            for order, latest in by_order.items():
                seeds_of = pair.get("losses", {}).get(task, {}).get(order, {}).get("sides", {})
                for each in (latest, *latest.get("elsewhere", [])):
                    cpu = each["setup"]["machine"]["cpu"].replace("(R)", "").replace(" Processor", "")
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
    """Peaks beyond the base of batches that share more and more, beside the estimate for padded rows."""
    rows = [["Examples", "Useful tokens", "Computed", "Peak, packed", "Peak, padded", "Estimated"]]
    for case in found["cases"]:
        packed = case["packed"]
        shared = f"{case['shared']:,} shared tokens, {case['own']} of their own" if case["shared"] else "nothing shared"
        bytes_ = (f"{value / 1e6:,.0f} MB" for value in (packed["peak"], case["padded"]["peak"], case["estimated"]))
        rows.append([shared, f"{packed['useful']:,}", f"{packed['computed']:,}", *bytes_])
    return rows


def decoding(found: Any) -> list[list[str]]:
    """A step of 32 rows."""
    names = {
        "transformers": "the base with transformers' attention",
        "base": "the base with Halka's attention",
        "one adapter": "one LoRA for all rows",
        "32 adapters": "32 LoRAs, one a row",
        "four families": "LoRA, bottleneck, prefix and prompt mixed",
        "peft": "peft, 32 LoRAs by `adapter_names`",
    }
    rows = [["32 rows", "ms a step", "Of transformers' base", "Of Halka's base", "Times peft's mixed batch"]]
    for way, name in names.items():
        each = found["ways"][way]
        shares = [f"{each[key]:.2f}" for key in ("of_transformers", "of_base")]
        rows.append([name, f"{each['ms_per_step']:.0f}", *shares, f"{each['of_peft']:.1f}"])
    return rows


def resident(found: Any) -> list[list[str]]:
    """The same step with ever more adapters in the model."""
    return [
        ["Adapters in the model", *(str(each["resident"]) for each in found["resident"])],
        ["in the batch", *(str(each["in_the_batch"]) for each in found["resident"])],
        ["ms a step", *(f"{each['ms_per_step']:.0f}" for each in found["resident"])],
    ]


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


def storage(found: Any) -> list[list[str]]:
    """A store and its pool."""
    first, pool = found["first_use"], found["pool"]
    return [
        ["What", "Measured"],
        [f"a LoRA of rank {first['rank']} on disk", f"{first['bytes_on_disk'] / 1e6:.1f} MB"],
        ["the same in memory (fp32)", f"{first['bytes_in_memory'] / 1e6:.1f} MB"],
        ["its first use, not in the system's cache", f"{first['cold_ms']:.0f} ms"],
        ["its first use, in the system's cache", f"{first['warm_ms']:.0f} ms"],
        ["switching to one that is in memory", f"{first['switching_ms']:.2f} ms"],
        [
            f"a pool's budget for {pool['adapters']:,} stored LoRAs of rank {pool['rank']}",
            f"{pool['budget'] / 1e6:.0f} MB",
        ],
        ["what the process grew by meanwhile", f"{pool['process_grew_by'] / 1e6:.0f} MB"],
        ["the most that the pool held", f"{pool['most_held'] / 1e6:.0f} MB"],
        [f"reads from disk in {pool['uses']:,} uses", f"{pool['read_from_disk']:,}"],
        ["until one is in use, at the median", f"{pool['median_ms_until_in_use']:.1f} ms"],
        [f"listing the {pool['adapters']:,}", f"{pool['listing_ms']:.0f} ms"],
    ]


def mixed_answers(found: Any) -> list[list[str]]:
    """Answers in batches beside answers one by one."""
    rows = [["Greedy answers in batches, beside one by one", "The same", "Largest gap (fp32 logits) where they part"]]
    names = {
        "float32": "mixed, fp32",
        "bfloat16": "mixed, bf16",
        "bfloat16, the bare base": "the bare base alone, bf16",
    }
    for key, name in names.items():
        each = found[key]
        gaps = [abs(one["gap_in_fp32"]) for one in each["first_differences"]]
        rows.append([name, f"{each['same']} of {each['of']}", f"{max(gaps):.3f}" if gaps else "–"])
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


def llama_cpp(found: Any) -> list[list[str]]:
    """Greedy answers of llama.cpp beside ours."""
    rows = [[f"GGUF, {found['tokens']} greedy tokens", "Answers the same", "Prompts tokenised alike"]]
    for name, each in found["found"].items():
        rows.append([name, f"{each['same']} of {each['of']}", f"{each['prompts_tokenised_alike']} of {each['of']}"])
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
    rows = [["LoRA r16", "Score", "Peak memory", "Beyond base", "Training tokens/s", "Runs"]]
    for each in found["rows"]:
        score = each["scores"][found["primary"]["name"]]
        rows.append(
            [
                each["label"].removeprefix("LoRA r16 "),
                f"{100 * score['value']:.1f} %",
                f"{each['peak']['mean'] / 1e9:.2f} GB",
                f"{each['beyond']['mean'] / 1e9:.2f} GB",
                f"{each['tokens_per_second']['mean']:.0f}",
                str(each["runs"]),
            ]
        )
    return rows


def retrieval(found: Any) -> list[list[str]]:
    """nDCG@10 and how often the first, or one of the first five, is right, of each way to search."""
    names = {"vectors": "vectors", "words": "words (BM25)", "ranks": "by ranks", "joined": "as Halka joins them"}
    rows = [["Set", "Passages", *(f"{each}: nDCG@10, hit@1, hit@5" for each in names.values())]]
    for name, each in found["quality"].items():
        ways = [[each["ways"][way][measure] for measure in ("nDCG@10", "Success@1", "Success@5")] for way in names]
        rows.append([name, f"{each['passages']:,}", *(", ".join(f"{value:.3f}" for value in way) for way in ways)])
    return rows


def growth(found: Any) -> list[list[str]]:
    """How each store's searches grow, for a reader of all passages."""
    kinds = ("rare words", "common words", "vectors", "joined")
    rows = [["Store", "Passages", *kinds, "Recall", "On disk", "Memory", "Taken in a second", "Tidied in"]]
    for store, sizes in found["stores"].items():
        for size, each in sorted(sizes.items(), key=lambda pair: int(pair[0])):
            times = [f"{each['all'][kind]['median']:.0f}, {each['all'][kind]['p95']:.0f}" for kind in kinds]
            disk = "–" if each["disk"] is None else f"{each['disk'] / 1e6:,.0f} MB"
            size_of = [disk, f"{each['memory'] / 1e6:,.0f} MB"]
            taken = [f"{each['put_per_second']:.0f}", f"{each['tidy_seconds']:.1f} s"]
            rows.append([store, f"{int(size):,}", *times, f"{each['all']['recall']:.2f}", *size_of, *taken])
    return rows


def growth_scopes(found: Any) -> list[list[str]]:
    """The same searches for readers of fewer passages."""
    kinds = ("common words", "vectors", "joined")
    rows = [["Store", "Passages", *(f"{kind}, {of}" for of in ("a half", "one in 100") for kind in kinds)]]
    for store, sizes in found["stores"].items():
        for size, each in sorted(sizes.items(), key=lambda pair: int(pair[0])):
            times = [f"{each[scope][kind]['median']:.0f}" for scope in ("half", "one in 100") for kind in kinds]
            rows.append([store, f"{int(size):,}", *times])
    return rows


def searching(found: Any) -> list[list[str]]:
    """What a search and taking in cost."""
    search, ingest = found["search"], found["ingest"]
    return [
        ["All sets in one collection", "Measured"],
        ["passages", f"{search['passages']:,}"],
        ["a search, at the median", f"{search['ms_median']:.0f} ms"],
        ["a search, at the 95th percentile", f"{search['ms_p95']:.0f} ms"],
        ["passages taken in a second", f"{ingest['passages_per_second']:.0f}"],
        ["of that time, the embedder's share", f"{100 * ingest['embedding']:.0f} %"],
    ]


def precision(found: Any) -> list[list[str]]:
    """A training step in two precisions, by kinds of processors."""
    from halka.report.units import step_time

    rows = [["Processor", "A step in float32", "in bfloat16", "Ratio"]]
    for row in found["rows"]:
        seconds = (step_time(row["seconds"][precision]) for precision in ("float32", "bfloat16"))
        rows.append([row["processor"], *seconds, f"{row['ratio']:.1f}"])
    return rows


def many_names(found: Any) -> list[list[str]]:
    """What a server does for the number of its adapters."""
    from halka.report.units import duration, size

    parts = {"models": "`GET /v1/models`", "list": "`GET /v1/adapters`", "page": "its first page", "search": "a search"}
    parts |= {"one": "one by its name", "missing": "a name that is not there"}
    answers = {"first_answer": "an answer by one that was not in memory", "next_answer": "by the same again"}
    rows = [["", *(f"{row['adapters']:,} adapters" for row in found["rows"])]]
    rows.append(["until the server is ready", *(duration(row["start_seconds"]) for row in found["rows"])])
    for part, name in parts.items():
        rows.append([name, *(f"{row[part]['ms']:.0f} ms, {size(row[part]['bytes'])}" for row in found["rows"])])
    for part, name in answers.items():
        rows.append([name, *(f"{row[part]['ms']:.0f} ms" for row in found["rows"])])
    return rows


def plan_traffic(found: Any) -> list[list[str]]:
    """What a million requests a day over ten thousand adapters take."""
    from halka.report.units import percent, size

    sides = found["traffic"]["sides"]
    ways = {"any machine": "requests to any machine", "the one that holds it": "adapters divided between machines"}
    rows = [["", *(side["name"] for side in sides)]]
    rows.append(["requests a second, one machine", *(f"{side['requests_per_second']:.0f}" for side in sides)])
    rows.append(["machines", *(str(side["machines"]) for side in sides)])
    rows.append(["a day", *(f"{side['price_per_day']:.0f} $" for side in sides)])
    rows.append(["a thousand requests", *(f"{side['price_per_1000']:.3f} $" for side in sides)])
    rows.append(
        [
            "to train all adapters",
            *(f"{side['training_hours']:,.0f} hours, {side['training_price']:,.0f} $" for side in sides),
        ]
    )
    rows.append(["an adapter", *(size(side["adapter"]) for side in sides)])
    rows.append(["all adapters on disk", *(size(side["disk"]) for side in sides)])
    rows.append([f"{found['assumptions']['held']} in a machine's memory", *(size(side["memory"]) for side in sides)])
    for way, name in ways.items():
        reads = (f"{size(side['reads'][way])}/s ({percent(side['share_of_disk'][way])})" for side in sides)
        rows.append([f"read from a machine's disk, {name}", *reads])
    gateways = [side["gateway"] for side in sides]
    sent = (f"{size(one['sent'])}/s ({percent(one['share_of_network'])})" for one in gateways)
    rows.append(["sent by the one gateway of `--on ray`, of what 10 Gbit carry", *sent])
    for name, key in {"requests and tokens": "cores_of_answers", "adapters": "cores_of_adapters"}.items():
        rows.append([f"cores of that gateway, for {name}", *(f"{one[key]:.2f}" for one in gateways)])
    return rows


def plan_hits(found: Any) -> list[list[str]]:
    """How many requests find their adapter in memory, by how many are."""
    from halka.report.units import percent

    hits = found["traffic"]["hits"]
    return [["Adapters in memory", *(f"{int(held):,}" for held in hits)], ["Hits", *map(percent, hits.values())]]


def plan_teams(found: Any) -> list[list[str]]:
    """What tuning a base of 70B takes fifty teams."""
    from halka.report.units import size

    names = {("full", None): "full", ("lora", None): "LoRA r16", ("lora", "nf4"): "LoRA r16, base in NF4"}
    ways = found["teams"]
    rows = [["", *(names[way["method"], way["quantize"]] for way in ways)]]
    rows.append(["H100s that a run needs at least", *(str(way["gpus"]) for way in ways)])
    rows.append(["memory on each of them", *(size(sum(way["on_each"].values())) for way in ways)])
    rows.append(["GPU hours a run", *(f"{way['gpu_hours_a_run']:.1f}" for way in ways)])
    rows.append(["GPU hours of all runs", *(f"{way['gpu_hours']:.0f}" for way in ways)])
    rows.append(["their price", *(f"{way['price']:,.0f} $" for way in ways)])
    rows.append(["what is kept on disk", *(size(way["stored"]) for way in ways)])
    rows.append(["memory to serve all teams", *(size(way["served"]) for way in ways)])
    rows.append(["H100s to serve them", *(str(way["serving_gpus"]) for way in ways)])
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


def engine(found: Any) -> list[list[str]]:
    """Tokens a second, and by those of what each is compared with."""
    return _rates(found["decoding"], without="halka, 32 of four families")


def engine_families(found: Any) -> list[list[str]]:
    """The same of 32 rows."""
    return _rates(found.get("families", {"ratios": [], "tokens_per_second": {}}))


def _rates(decoding: Any, without: str = "") -> list[list[str]]:
    against = {(each["of"], each["to"]): each["ratio"] for each in decoding["ratios"]}
    rows = [["While all rows decode", "Tokens a second", "Times those of"]]
    for side, tokens in decoding["tokens_per_second"].items():
        if side == without:
            continue
        ratios = [f"{ratio:.2f} {other}" for (one, other), ratio in against.items() if one == side]
        rows.append([side, f"{tokens:.0f}", ", ".join(ratios) or "–"])
    return rows


def engine_loads(found: Any) -> list[list[str]]:
    """What a load costs those who decode, and requests at a time by one at a time."""
    rows = [["Under load", "Ratio", "Wanted"]]
    if each := found.get("requests"):
        rows.append(["32 requests at a time, by one at a time", f"{each['ratio']:.2f}", f"≥ {each['wanted']:g}"])
    loads = {
        "long_prompt": "The gap between tokens of 31 rows while 2,000 tokens are read",
        "adapters": "The same of 24 rows while 26 adapters come and go, room for 8",
    }
    for part, name in loads.items():
        for figure, words in {"median": "median", "p95": "95th percentile"}.items():
            if f"{figure}_ratio" in (each := found.get(part, {})):
                aim = f"≤ {each[f'{figure}_wanted_at_most']:g}"
                rows.append([f"{name}, {words}", f"{each[f'{figure}_ratio']:.2f}", aim])
    for way in ("one request under way", "four requests under way"):
        if each := found.get("tenants", {}).get(way):
            name = f"A tenant's seconds to a first token beside a flood of 64, {way}, 95th percentile"
            rows.append([name, f"{each['p95_ratio']:.2f}", f"≤ {each['p95_wanted_at_most']:g}"])
    return rows


def engine_exactness(found: Any) -> list[list[str]]:
    """Requests with adapters that come, go and change, each answer beside its single run."""
    rows = [["Base, fp32", "Answers", "Of adapter contents", "Single runs", "Wrong", "Near ties"]]
    for base, each in found["answers"].items():
        cells = (each["answers"], each["contents"], each["single_runs"], len(each["wrong"]), len(each["ties"]))
        rows.append([base, *(f"{cell:,}" for cell in cells)])
    return rows


def serving(found: Any) -> list[list[str]]:
    """Requests or tokens a second over HTTP, by those of what they are compared with."""
    names = {"clients": "Requests a second", "cost": "Tokens a second", "peft": "Requests a second, 32 LoRAs"}
    rows = [["In one run", "Of", "By", "Ratio", "Wanted"]]
    for part, name in names.items():
        if each := found.get(part):
            rates = next(each[key] for key in ("requests_per_second", "tokens_per_second") if key in each)
            sides = [f"{each[side]}: {rates[each[side]]:.3g}" for side in ("of", "to")]
            wanted = "–" if each["wanted"] is None else f"≥ {each['wanted']:g}"
            rows.append([name, *sides, f"{each['ratio']:.2f}", wanted])
    for each in found.get("latency", {}).get("ratios", []):
        words = {"median": "median", "p95": "95th percentile"}[each["of"]]
        sides = ["/metrics", "guidellm"]
        rows.append([f"Seconds to the first token, {words}", *sides, f"{each['ratio']:.2f}", "0.9 to 1.1"])
    return rows


def serving_exactness(found: Any) -> list[list[str]]:
    """Requests of three tenants over HTTP while all is changed, and what was there after SIGKILL."""
    counts, memory = found["counts"], found["memory"]["ratio"]
    kept = sum(sum(kill["acknowledged"].values()) for kill in found["kills"])
    missing = sum(len(kill["missing"]) for kill in found["kills"])
    rows = [["Over HTTP", "Figure"]]
    rows.append(["requests and changes", f"{found['requests']:,}"])
    rows.append(["answers checked", f"{counts['answers']:,}"])
    rows.append(
        ["wrong, lost, double, or of another tenant; near ties", f"{len(found['wrong'])}; {len(found['ties'])}"]
    )
    rows.append(["429s of the tenant whose key allows three answers at once", f"{counts.get('429', 0):,}"])
    rows.append(["the server's memory at the end, by that after a quarter", f"{memory:.3f}"])
    rows.append(
        [f"acknowledged before {len(found['kills'])} SIGKILLs in mid-load; missing afterwards", f"{kept}; {missing}"]
    )
    return rows


def page(found: Any) -> list[list[str]]:
    """How soon the server's page can be used."""
    names = {"machine": "the first load", "phone": "the first load, as on a slow phone", "again": "once more, there"}
    rows = [["Up to a Playground that takes a question", "Requests", "Size", "Seconds"]]
    for key, name in names.items():
        load = found[key]
        rows.append([name, f"{load['requests']:.0f}", f"{load['bytes'] / 1000:.0f} kB", f"{load['seconds']:.2f}"])
    return rows


def page_walks(found: Any) -> list[list[str]]:
    """How long somebody new needs to an answer on the page."""
    names = {
        "own": "from a file of 200 letters, by a training as it is offered, to an answer beside the base's",
        "served": "from `halka serve` with that adapter to an answer beside the base's",
    }
    head = ["Somebody new, on the same two cores", "Minutes"]
    return [head, *([name, f"{found['walks'][key] / 60:.1f}"] for key, name in names.items())]


def vllm_exchange(found: Any) -> list[list[str]]:
    """vLLM's greedy answers beside ours."""
    rows = [["Greedy answers by vLLM, beside ours", "fp32: the same", "bf16: the same", "Largest gap where they part"]]
    names = {"halka": "LoRA trained by Halka", "peft": "LoRA trained by peft", "no adapter": "the bare base"}
    for key, name in names.items():
        each = [found[dtype][key] for dtype in ("float32", "bfloat16")]
        gaps = [abs(one["gap_in_fp32"]) for both in each for one in both["first_differences"]]
        shares = [f"{one['same']} of {one['of']}" for one in each]
        rows.append([name, *shares, f"{max(gaps):.3f}" if gaps else "–"])
    return rows


def vllm_gateway(found: Any) -> list[list[str]]:
    """Answers of a server with vLLM behind it, beside one without."""
    rows = [
        ["Chats in fp32, with vLLM behind the server and without", "The same", "Largest gap of log probabilities", "By"]
    ]
    names = {
        "lora": "a LoRA",
        "replaced": "its next version, under its name",
        "base": "the bare base",
        "bottleneck": "a bottleneck adapter",
    }
    compared = [(name, found[key]) for key, name in names.items()]
    compared += [(f"a LoRA, {name}", one) for name, one in found.get("settings", {}).items()]
    for name, one in compared:
        by = " and ".join(backend for backend, count in one["answered_by"].items() if count)
        gap = "–" if (gap := one["largest_gap_of_logprobs"]) is None else f"{gap:.5f}"
        rows.append([name, f"{one['same']} of {one['of']}", gap, by])
    return rows


REPLICA_LOADS = {
    "talks": "two replicas, talks of three",
    "single": "two replicas, single requests",
    "scaled": "one to two replicas, talks",
    "killed": "two replicas, one killed, talks",
}


def replicas(found: Any) -> list[list[str]]:
    """Answers by replicas under load: how many were right, and how many requests met their adapter."""
    head = ["Load", "Answers", "Wrong", "Lost", "Met their adapter", "Random places", "One memory of ten"]
    rows = [head]
    for key, name in REPLICA_LOADS.items():
        draws = found["loads"][key]
        counts = [str(sum(one[kind] for one in draws)) for kind in ("requests", "wrong", "lost")]
        drawn = sum(one.get("draws", one["requests"] / (1 if key == "single" else 3)) for one in draws)
        met = _range([one["met, %"] for one in draws], drawn)
        others = (_range([one[f"by {kind}, %"] for one in draws]) for kind in ("random places", "one memory of ten"))
        rows.append([name, *counts, met, *others])
    return rows


def _range(shares: list[float], drawn: float | None = None) -> str:
    """The mean of shares in %, with the 95 % interval of so many draws, and the least and the most of several."""
    least, most, mean = min(shares), max(shares), sum(shares) / len(shares)
    interval = "" if drawn is None else f" ± {1.96 * math.sqrt(mean * (100 - mean) / drawn):.1f}"
    return f"{mean:.1f} %{interval}" + (f" [{least:.1f}–{most:.1f}]" if len(shares) > 1 else "")


def replicas_settings(found: Any) -> list[list[str]]:
    """How each load was asked; "–": an earlier result that does not say it."""
    rows = [["Load", "Replicas", "Rows of each", "Seconds of each number of clients", "Seeds", "As streams"]]
    for key, name in REPLICA_LOADS.items():
        draws = found["loads"][key]
        one, streams = draws[0], [one["as streams"] for one in draws if "as streams" in one]
        cells = [str(one.get(setting, "–")) for setting in ("replicas", "rows")]
        seconds = f"{one['seconds']:g}" if "seconds" in one else "–"
        share = f"{sum(streams)} of {sum(one['requests'] for one in draws)}" if streams else "–"
        rows.append([name, *cells, seconds, str(len(draws)), share])
    return rows


def replicas_gateway(found: Any) -> list[list[str]]:
    """What a gateway's own process computes."""
    gateway = found.get("gateway")
    rows = [["The gateway computes", "Seconds of one core"]]
    if gateway is None:
        return rows
    milliseconds = {"a request": "request, s", "a token of a stream": "token of a stream, s"}
    milliseconds |= {"a token of a whole answer": "token of a whole answer, s"}
    rows += [[name, f"{1000 * gateway[key]:.2f} ms"] for name, key in milliseconds.items()]
    megabytes = gateway["adapter, bytes"] / 1e6
    for name, key in {"that it reads and sends": "adapter, s", "that Ray has": "adapter that Ray has, s"}.items():
        rows.append([f"an adapter of {megabytes:.0f} MB {name}", f"{gateway[key]:.2f} s"])
    return [*rows, ["nothing, for a second", f"{1000 * gateway['idle, cores']:.0f} ms"]]


def replicas_speed(found: Any) -> list[list[str]]:
    """Tokens a second with one and two replicas on the same two cores."""
    rows = [["Sixteen clients, sixteen adapters, bf16, on the same two cores", "Tokens a second"]]
    return rows + [[name, f"{speed:.0f}"] for name, speed in found["tokens a second"].items()]


def estimator(found: Any) -> list[list[str]]:
    """Estimated memory and time beside measured, by what the cases have in common."""
    head = ["Estimated, of what was measured", "Cases", "Memory, at the median", "at worst", "on average"]
    rows = [[*head, "A step's time, at the median", "at worst", "within 25 %"]]
    told = found["summary"]
    names = {"method": "", "base": "on ", "dtype": "in ", "checkpointing": "checkpointing "}
    groups = [("all", told["all"])]
    for key, before in names.items():
        said = {"True": "on", "False": "off"}
        groups += [(f"{before}{said.get(value, value)}", each) for value, each in told["by"][key].items()]
    for name, each in groups:
        time = each["time"]
        offs = (f"{100 * each['worst']:+.0f} %", f"{100 * each['mean']:+.0f} %"), (f"{100 * time['worst']:+.0f} %",)
        memory, worst = ([off.replace("-", "−") for off in some] for some in offs)
        timed = [f"{100 * time['median']:.0f} %", *worst, f"{time['within']} of {time['cases']}"]
        rows.append([name, str(each["cases"]), f"{100 * each['median']:.0f} %", *memory, *timed])
    return rows


def estimator_published(found: Any) -> list[list[str]]:
    """Estimates of Halka's runs beside what was published of others' software."""
    rows = [["Run", "Estimated for Halka", "Published", "By"]]
    for each in found["published"]:
        rows.append([each["case"], f"{each['estimated'] / 1e9:.1f} GB", each["published"], each["source"]])
    return rows


def large_bases(found: Any) -> list[list[str]]:
    """Estimates of what tuning large bases takes."""
    from halka.report.units import count, percent, size, step_time

    head = ["Base", "Method", "Trained", "Memory", "A step on an H100", "100 tasks on disk", "100 tasks in memory"]
    names = {("full", None): "full", ("lora", None): "LoRA r16", ("lora", "nf4"): "LoRA r16, base in NF4"}
    rows = [head]
    for each in found["rows"]:
        trained = f"{count(each['trained'])} ({percent(each['trained'] / each['parameters'])})"
        sizes = [size(each[key]) for key in ("memory", "stored", "served")]
        cells = [trained, sizes[0], step_time(each["seconds"]), *sizes[1:]]
        rows.append([each["base"], names[each["method"], each["quantize"]], *cells])
    for each in found["gpt3"]:
        trained = f"{count(each['trained'])} ({percent(each['share'])})"
        rows.append(["GPT-3 175B", f"LoRA r{each['rank']} on queries and values", trained, *["–"] * 4])
    return rows


def advisor(found: Any) -> list[list[str]]:
    """The advisor's advice beside the truth, case by case."""
    rows = [["Case", "What is to be learned", "Truth", "Advised", "Confidence", "Regret", "What each option scored"]]
    for each in found["cases"]:
        name = each["case"].replace("_", " ") + (" (aside)" if each["aside"] else "")
        scores = ", ".join(f"{option} {value:.2f}" for option, value in each["scores"].items())
        advised = each["advised"] if each["agrees"] else f"**{each['advised']}**"
        told = [f"{each['confidence']:.2f}", f"{each['regret']:.2f}", scores]
        rows.append([name, each["kind"], each["truth"], advised, *told])
    for case in found["waiting"]:
        name = case["case"].replace("_", " ") + (" (aside)" if case["aside"] else "")
        rows.append([name, *["–"] * 5, f"not judged: no {' and no '.join(case['lacks'])} yet"])
    return rows


def advisor_summary(found: Any) -> list[list[str]]:
    """How often the advisor agrees, and what following it costs."""
    names = {"all": "all cases", "seen": "those not held aside", "aside": "those held aside"}
    rows = [["", "Agrees", "Regret, on average", "Regret, at worst"]]
    for key, name in names.items():
        each = found["summary"][key]
        rows.append(
            [name, f"{each['agrees']} of {each['cases']}", f"{each['mean_regret']:.3f}", f"{each['worst_regret']:.2f}"]
        )
    if found["waiting"]:
        rows.append(["not judged yet", f"– of {len(found['waiting'])}", "–", "–"])
    return rows


def advisor_confusion(found: Any) -> list[list[str]]:
    """How often each choice was advised where each was the truth."""
    cells = {(each["truth"], each["advised"]): each["cases"] for each in found["summary"]["confusion"]}
    order = ("prompt", "rag", "peft", "peft+rag", "full", "data", "base")
    truths, advised = ([choice for choice in order if any(pair[at] == choice for pair in cells)] for at in (0, 1))
    return [
        ["Truth, and what was advised", *advised],
        *([was, *(str(cells.get((was, said), "")) for said in advised)] for was in truths),
    ]


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
    "decoding": ("decoding", decoding),
    "resident": ("decoding", resident),
    "together": ("together", together),
    "storage": ("storage", storage),
    "mixed_answers": ("mixed_answers", mixed_answers),
    "engine": ("engine", engine),
    "engine_families": ("engine", engine_families),
    "engine_loads": ("engine", engine_loads),
    "page": ("page", page),
    "page_walks": ("page", page_walks),
    "serving": ("serving", serving),
    "serving_exactness": ("serving_exactness", serving_exactness),
    "engine_exactness": ("engine_exactness", engine_exactness),
    "vllm_exchange": ("vllm_exchange", vllm_exchange),
    "vllm_gateway": ("vllm_gateway", vllm_gateway),
    "replicas": ("replicas", replicas),
    "replicas_settings": ("replicas", replicas_settings),
    "replicas_speed": ("replicas", replicas_speed),
    "replicas_gateway": ("replicas", replicas_gateway),
    "merging": ("merging", merging),
    "combining": ("merging", combining),
    "llama_cpp": ("llama_cpp", llama_cpp),
    "quantised": ("quantised", quantised),
    "quantised_runs": ("quantised/summary", quantised_runs),
    "estimator": ("estimator", estimator),
    "estimator_published": ("estimator", estimator_published),
    "large_bases": ("large_bases", large_bases),
    "precision": ("precision", precision),
    "many_names": ("many_names", many_names),
    "plan_traffic": ("plans", plan_traffic),
    "plan_hits": ("plans", plan_hits),
    "plan_teams": ("plans", plan_teams),
    "experts": ("experts", experts),
    "distributed": ("distributed", distributed),
    "distributed_losses": ("distributed", distributed_losses),
    "distributed_killed": ("distributed", distributed_killed),
    "advisor": ("advisor/advisor", advisor),
    "advisor_summary": ("advisor/advisor", advisor_summary),
    "advisor_confusion": ("advisor/advisor", advisor_confusion),
    "retrieval": ("retrieval", retrieval),
    "searching": ("retrieval", searching),
    "growth": ("growth", growth),
    "growth_scopes": ("growth", growth_scopes),
}


def benchmark(name: str) -> str:
    """A benchmark's file as a Markdown table: first column to the left, numbers to the right."""
    file, rows_of = TABLES[name]
    path = RESULTS / f"{file}.json"
    if not path.exists():
        return NOT_YET
    head, *rows = rows_of(json.loads(path.read_text(encoding="utf-8")))
    if not rows:
        return NOT_YET
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def filled(text: str) -> str:
    """`text` with every marked place holding what the results say now."""

    def place(match: re.Match[str]) -> str:
        if match["format"]:
            content = exchange.table(match["format"])
        elif match["ablation"]:
            content = ablation(match["ablation"])
        else:
            content = table(match["name"]) if match["name"] else benchmark(match["benchmark"])
        return f"{match['mark']}\n{content.strip()}\n<!-- end -->"

    formats = "|".join({row.format: 0 for row in exchange.ROWS})
    benchmarks = "|".join(sorted(TABLES, reverse=True))  # a longer name before its beginning
    marks = rf"table: (?P<name>\w+)|ablation: (?P<ablation>\w+)|(?P<format>{formats})|(?P<benchmark>{benchmarks})"
    return re.sub(rf"(?P<mark><!-- (?:{marks}) -->)\n.*?<!-- end -->", place, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
