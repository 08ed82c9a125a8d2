"""Tables of answers: decoding, adapters in memory, the engine, the server, other engines, replicas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


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


def llama_cpp(found: Any) -> list[list[str]]:
    """Greedy answers of llama.cpp beside ours."""
    rows = [[f"GGUF, {found['tokens']} greedy tokens", "Answers the same", "Prompts tokenised alike"]]
    for name, each in found["found"].items():
        rows.append([name, f"{each['same']} of {each['of']}", f"{each['prompts_tokenised_alike']} of {each['of']}"])
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


TABLES: dict[str, tuple[str, Callable[[Any], list[list[str]]]]] = {
    "decoding": ("decoding", decoding),
    "resident": ("decoding", resident),
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
    "llama_cpp": ("llama_cpp", llama_cpp),
    "many_names": ("many_names", many_names),
}
