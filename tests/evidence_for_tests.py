"""Invented results for the evidence page, in the files that `halka compare` writes."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from halka.studies.experiment import Entry

PARAMETERS = 134_515_008
TRUTH = {"full": (0.70, 80), "lora": (0.69, 100), "bottleneck": (0.68, 120), "dora": (0.69, 110), "prefix": (0.5, 300)}
"""By method, the score that training comes to, and the steps in which two thirds of it are learned."""


def write(folder: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Write each run as a file of the study in `folder`."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for run in runs:
        name = f"{run['method']['label']}-{run['lr']}-{run['seed']}-{run['purpose']}".replace(" ", "-")
        (folder / "runs" / f"{name}.json").write_text(json.dumps(run), encoding="utf-8")


def study(
    settings: Mapping[str, Any],
    primary: str,
    *,
    seeds: Mapping[str, int] | int = 3,
    scores: Mapping[str, float] | None = None,
    limited: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """The runs of an experiment: searches, then as many final runs as `seeds` has, for each label or for all.

    scores    the score that a method's runs come to, by label
    limited   labels whose runs come to the most steps while they still improve
    """
    runs = []
    for entry in settings["methods"]:
        label, lrs = entry["label"], entry.get("lrs", [None])
        score, pace = TRUTH.get(entry["method"], (0.4, 200))
        score = (scores or {}).get(label, 0.02 if entry["method"] == "base" else score)
        if settings.get("sweep"):
            wanted = seeds if isinstance(seeds, int) else seeds.get(label, 0)
            runs += [sweep(settings, entry, lr, seed) for lr in lrs for seed in range(wanted)]
            continue
        wanted = seeds if isinstance(seeds, int) else seeds.get(label, -1)
        wanted = min(wanted, 1) if entry["method"] == "base" else wanted
        if wanted >= 0 and len(lrs) > 1:
            runs += [{**_common(settings, entry, lr, 0, "search"), **_validated(lr, lrs)} for lr in lrs]
        for seed in range(max(wanted, 0)):
            lr = lrs[len(lrs) // 2]
            run = _common(settings, entry, lr, seed, "final")
            runs.append(run | _final(settings, entry, score, pace, seed, primary, label in limited))
    return runs


def sweep(settings: Mapping[str, Any], entry: Mapping[str, Any], lr: float, seed: int) -> dict[str, Any]:
    return _common(settings, entry, lr, seed, "search") | _validated(lr, entry["lrs"], seed)


def _validated(lr: float, lrs: list[float], seed: int = 0) -> dict[str, Any]:
    best = lrs[len(lrs) // 2] * 1.02**seed
    return {"validation_loss": 0.2 + 0.05 * math.log(lr / best) ** 2 + seed / 500}


def _common(
    settings: Mapping[str, Any], entry: Mapping[str, Any], lr: float | None, seed: int, purpose: str
) -> dict[str, Any]:
    own = {key: value for key, value in entry.items() if key not in ("method", "label", "lrs", "text", "train")}
    train = {**settings["train"], **entry.get("train", {})}
    return {
        "schema": 1,
        "status": "done",
        "error": None,
        "experiment": settings["name"],
        "task": Path(settings["task"]).stem,
        "base": settings["base"],
        "dtype": settings["dtype"],
        "method": {"name": entry["method"], "label": entry["label"], "fields": Entry(**entry).new_defaults() | own},
        "lr": lr,
        "seed": seed,
        "purpose": purpose,
        "best_by": settings.get("best_by", "loss") if purpose == "final" else "loss",
        "config": train if purpose == "final" else {"steps": settings.get("search_steps")},
        "examples": dict(settings["examples"]),
        "commit": "0" * 12,
        "machine": {"cpu": "a processor", "cores": 2, "device": "cpu"},
    }


def _final(
    settings: Mapping[str, Any],
    entry: Mapping[str, Any],
    score: float,
    pace: float,
    seed: int,
    primary: str,
    is_limited: bool,
) -> dict[str, Any]:
    """What a final run measured: it learns exponentially towards its score, and stops soon after its best."""
    draw, scale = random.Random(f"{entry['label']} {seed}"), 100 if primary in ("bleu", "chrf") else 1
    value = score + (0.004 * (seed - 1) if entry["method"] != "base" else 0)
    draws = [round(scale * (value + random.Random(number).gauss(0, 0.01)), 5) for number in range(100)]
    scored = {primary: {"value": scale * value, "low": min(draws), "high": max(draws), "n": 500}}
    result: dict[str, Any] = {"primary": primary, "scores": scored, "draws": draws, "validation_loss": 2.0}
    result["parameters"] = {"trainable": 0, "total": PARAMETERS}
    if entry["method"] == "base":
        return result
    most, every, patience = (settings["train"][name] for name in ("steps", "evaluate_every", "patience"))
    best = most if is_limited else min(most - patience * every, every * round(3 * pace / every + seed))
    last = min(best + patience * every, most)
    size = {"full": PARAMETERS}.get(entry["method"], 300_000 * entry.get("rank", entry.get("width", 4)))
    seconds = {"full": 1.6}.get(entry["method"], 1.1)
    steps = range(every, last + 1, every)
    learned = {step: 1 - math.exp(-step / pace) for step in steps}
    validation = [{"step": step, "loss": 2 - learned[min(step, best)] + 0.01 * (step > best)} for step in steps]
    reached = {step: min(learned[step], learned[best] * (0.99 if step > best else 1)) for step in steps}
    followed = [
        {"step": step, "score": scale * value * reached[step] / learned[best], "perplexity": 30 * (1 + step / most)}
        for step in steps
    ]
    change = draw.uniform(0.1, 0.2) * (2 if entry["method"] == "full" else 1)
    return result | {
        "parameters": {"trainable": size, "total": PARAMETERS},
        "validation_loss": min(point["loss"] for point in validation),
        "train": {
            "steps": last,
            "best_step": best,
            "examples": settings["examples"]["train"],
            "seconds": last * seconds,
            "tokens_per_second": 200 / seconds,
            "validation": validation,
            "scores": followed,
        },
        "memory": {"peak": 2_000_000_000 + 16 * size, "baseline": 1_000_000_000},
        "forgetting": {"text": "neutral", "base_perplexity": 30, "perplexity": 30 * (1 + change), "change": change},
        "adapter_bytes": 4 * size,
    }
