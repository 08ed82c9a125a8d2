"""Tables of what is estimated, planned and advised."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any


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
    names |= {"aside_later": "of these the later ones"} if found["summary"]["aside_later"]["cases"] else {}
    rows = [["", "Agrees", "Regret, on average", "Regret, at worst"]]
    for key, name in names.items():
        each = found["summary"][key]
        rows.append(
            [name, f"{each['agrees']} of {each['cases']}", f"{each['mean_regret']:.3f}", f"{each['worst_regret']:.2f}"]
        )
    if found["waiting"]:
        rows.append(["not judged yet", f"– of {len(found['waiting'])}", "–", "–"])
    return rows


def advisor_probes(found: Any) -> list[list[str]]:
    """What the cases' probes looked at: the least, the median and the most of the cases."""
    names = {
        "held_out": "held-out examples asked",
        "trials": "trials",
        "steps": "steps of the longest trial",
        "seconds": "minutes in all",
    }
    rows = [["A case had", "At least", "Median", "At most"]]
    for key, name in names.items():
        values = [each["probes"][key] for each in found["cases"]]
        least_median_most = (min(values), statistics.median(values), max(values))
        rows.append([name, *(f"{value / 60:.1f}" if key == "seconds" else f"{value:g}" for value in least_median_most)])
    return rows


def advisor_minutes(found: Any) -> list[list[str]]:
    """What the advisor made of its minutes, by how long prompts are."""
    from halka.report.units import percent

    head = ["Prompts", "`--minutes`", "Took, minutes", "Of these", "Held-out examples"]
    rows = [[*head, "Trials", "Steps of the longest"]]
    for each in found["cases"]:
        steps = [steps for _, steps in each["trials"]]
        took = [f"{each['minutes']:g}", f"{each['used']:.1f}", percent(each["share"])]
        longest = str(max(steps)) if steps else "–"
        rows.append([each["prompts"], *took, str(each["held_out"]), str(len(steps)), longest])
    return rows


def advisor_confidence(found: Any) -> list[list[str]]:
    """How confident the advisor was beside how often it agreed."""
    *groups, every = found["summary"]["confidence"]
    rows = [["Confidence", "Cases", "On average", "Agrees"]]
    for each in (*groups, every):
        name = "all" if each is every else f"{each['from']:g} to {each['to']:g}"
        agrees = f"{each['agrees']} ({100 * each['agrees'] / each['cases']:.0f} %)"
        rows.append([name, str(each["cases"]), f"{each['confidence']:.2f}", agrees])
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


TABLES: dict[str, tuple[str, Callable[[Any], list[list[str]]]]] = {
    "estimator": ("estimator", estimator),
    "estimator_published": ("estimator", estimator_published),
    "large_bases": ("large_bases", large_bases),
    "plan_traffic": ("plans", plan_traffic),
    "plan_hits": ("plans", plan_hits),
    "plan_teams": ("plans", plan_teams),
    "advisor": ("advisor/advisor", advisor),
    "advisor_summary": ("advisor/advisor", advisor_summary),
    "advisor_three_minutes": ("advisor/three_minutes", advisor_summary),
    "advisor_probes": ("advisor/advisor", advisor_probes),
    "advisor_minutes": ("advisor/minutes", advisor_minutes),
    "advisor_confidence": ("advisor/advisor", advisor_confidence),
    "advisor_confusion": ("advisor/advisor", advisor_confusion),
}
