"""Invented but plausible measurements of one experiment, in the JSON form that `halka.studies.measure` writes."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Any

TOTAL = 134_515_008
WEIGHTS, HELD = 269_030_016.0, 0.41e9  # bytes: the base, and the process without it
PROMPTS = (
    ("My card was charged twice for one order", '{"intent": "refund", "item": "order", "urgent": false}'),
    ("Please send the invoice for March again", '{"intent": "invoice", "month": "March", "urgent": false}'),
    ("I cannot log in and my demo starts in an hour", '{"intent": "login", "urgent": true}'),
    ("Move my delivery to Friday, please", '{"intent": "reschedule", "day": "Friday", "urgent": false}'),
)


@dataclass(frozen=True)
class Invented:
    """One method's truth: what its measurements scatter around. Memory in GB: gradients, optimiser, activations."""

    name: str
    label: str
    score: float
    loss: float
    trainable: int
    lrs: tuple[float, ...]
    lr: float
    memory: tuple[float, float, float]
    speed: float
    latency: float
    forgetting: float
    weights: float = 0.269
    fields: dict[str, Any] = field(default_factory=dict)


METHODS = (
    Invented(
        *("full", "Full", 0.62, 0.497, TOTAL, (3e-5, 1e-4, 3e-4), 1e-4, (0.538, 1.076, 0.92), 690.0, 0.0, 0.34),
        weights=0.807,
    ),
    Invented(
        *("lora", "LoRA r16", 0.61, 0.507, 4_884_480, (5e-4, 1e-3, 2e-3, 4e-3), 2e-3),
        *((0.0195, 0.039, 0.98), 905.0, 0.09, 0.10),
        weights=0.289,
        fields={"rank": 16, "alpha": 32.0},
    ),
    Invented(
        *("lora", "LoRA r8", 0.605, 0.515, 2_442_240, (5e-4, 1e-3, 2e-3, 4e-3), 2e-3),
        *((0.0098, 0.0195, 0.975), 918.0, 0.085, 0.08),
        weights=0.279,
        fields={"rank": 8, "alpha": 16.0},
    ),
    Invented(
        *("bottleneck", "Bottleneck", 0.60, 0.521, 2_248_320, (5e-4, 1e-3, 2e-3), 2e-3),
        *((0.009, 0.018, 0.90), 952.0, 0.04, 0.07),
        weights=0.278,
        fields={"width": 32},
    ),
    Invented(
        *("ia3", "IA3", 0.45, 0.66, 57_600, (3e-3, 1e-2, 3e-2), 1e-2),
        *((0.0002, 0.0005, 0.86), 938.0, 0.01, 0.02),
    ),
    Invented(
        *("prefix", "Prefix", 0.35, 0.78, 230_400, (3e-3, 1e-2, 3e-2), 1e-2),
        *((0.0009, 0.0018, 0.79), 985.0, 0.02, 0.04),
        fields={"length": 20},
    ),
    Invented(
        *("prompt", "Prompt", 0.20, 0.93, 18_432, (1e-2, 3e-2, 1e-1), 1e-1),
        *((0.0001, 0.0001, 0.81), 940.0, 0.015, 0.01),
        fields={"length": 32},
    ),
)
SHIFTS = {0: 0.0, 1: 0.011, 2: -0.009, 3: 0.006, 4: -0.004}


def measurements(
    seeds: int = 3,
    items: int = 200,
    methods: tuple[Invented, ...] = METHODS,
    failures: bool = True,
    samples: bool = True,
) -> list[dict[str, Any]]:
    """The base, and of each method a search with seed 0 and final runs; the same arguments give the same numbers."""
    runs = [_base(items, samples)]
    for method in methods:
        runs += [_run(method, lr, 0, "search", items, False) for lr in method.lrs]
        runs += [_run(method, method.lr, seed, "final", items, samples) for seed in range(seeds)]
    if failures:
        runs = [_failing(run, seeds) for run in runs]
    return runs


def perplexities(seeds: int = 3, items: int = 200) -> list[dict[str, Any]]:
    """The same experiment judged by perplexity, where lower is better."""
    changed = []
    for run in measurements(seeds, items):
        scores = {}
        if run["scores"]:
            score = run["scores"]["exact_match"]
            value = 12.0 * math.exp(-2.0 * score["value"])
            scores = {"perplexity": {"value": value, "low": 0.95 * value, "high": 1.05 * value, "n": score["n"]}}
        changed.append(run | {"scores": scores, "primary": "perplexity"})
    return changed


def _common() -> dict[str, Any]:
    return {
        "schema": 1,
        "status": "done",
        "error": None,
        "experiment": "support",
        "task": "support",
        "base": "smollm2-135m",
        "dtype": "bfloat16",
        "primary": "exact_match",
        "versions": {"halka": "0.1.0", "torch": "2.13.0", "transformers": "5.24.0", "python": "3.11.7"},
        "machine": {"cpu": "AMD EPYC 9555", "cores": 2, "memory": 2.4e10, "device": "cpu"},
        "commit": "7e66daf",
        "date": "2026-11-24T16:00:00+00:00",
        "licence": "CC0-1.0",
        "source": "support messages written for this project",
    }


def _scores(value: float, items: int) -> dict[str, Any]:
    def score(share: float) -> dict[str, float]:
        right = round(share * items)
        share = right / items
        half = 1.96 * math.sqrt(share * (1 - share) / items)
        high = share + half if right else 1 - 0.05 ** (1 / items)
        return {"value": share, "low": max(share - half, 0.0), "high": min(high, 1.0), "n": items}

    return {
        "exact_match": score(value),
        "json_valid": score(min(1.0, value * 0.9 + 0.41) if value else 0.05),
        "token_f1": score(min(1.0, 0.27 + 0.8 * value)),
    }


def _samples(score: float, rng: random.Random) -> list[dict[str, str]]:
    wrong = ('{"intent": "other"}', "I am sorry to hear that. Could you tell me more about", '{"intent": "refund"}')
    return [
        {
            "prompt": prompt,
            "reference": reference,
            "prediction": reference if (i + 0.5) / len(PROMPTS) < 1.3 * score else wrong[(i + rng.randrange(2)) % 3],
        }
        for i, (prompt, reference) in enumerate(PROMPTS)
    ]


def _base(items: int, samples: bool) -> dict[str, Any]:
    run = _common() | {
        "method": {"name": "base", "label": "base (no tuning)", "fields": {}},
        "lr": None,
        "seed": 0,
        "purpose": "final",
        "train": None,
        "validation_loss": 2.31,
        "scores": _scores(0.0, items),
        "parameters": {"trainable": 0, "total": TOTAL},
        "adapter_bytes": None,
        "memory": None,
        "latency": {"base_ms_per_token": 30.1, "adapted_ms_per_token": None, "added": None},
        "forgetting": {"text": "tinyshakespeare", "base_perplexity": 40.0, "perplexity": 40.0, "change": 0.0},
    }
    if samples:
        run["samples"] = [
            {"prompt": prompt, "reference": reference, "prediction": f"You said: “{prompt}”. How can I help?"}
            for prompt, reference in PROMPTS
        ]
    return run


def _run(method: Invented, lr: float, seed: int, purpose: str, items: int, samples: bool) -> dict[str, Any]:
    rng = random.Random(f"{method.label} {lr} {seed} {purpose}")
    off = abs(math.log(lr / method.lr))
    loss = method.loss * (1 + 0.05 * off**1.3) + rng.uniform(-0.006, 0.006)
    score = max(method.score + SHIFTS[seed % 5] - 0.05 * off + rng.uniform(-0.004, 0.004), 0.0)
    steps = 120
    validation = [
        {"step": step, "loss": loss + (2.31 - loss) * math.exp(-step / (12 if loss < 0.6 else 38))}
        for step in range(0, steps + 1, 10)
    ]
    if method.loss < 0.6:
        for point in validation:
            point["loss"] += 0.0004 * max(point["step"] - 90, 0)
    best = min(validation, key=lambda point: point["loss"])
    parts = {
        "weights": method.weights * 1e9,
        **{
            part: gigabytes * 1e9 * rng.uniform(0.99, 1.01)
            for part, gigabytes in zip(("gradients", "optimizer", "activations"), method.memory, strict=True)
        },
    }
    predicted = {part: value * (0.93 if part == "activations" else 1.0) for part, value in parts.items()}
    base_ms = 30.1 + rng.uniform(-0.9, 0.9)
    size = 4 * method.trainable + 9_000 if method.name != "full" else int(WEIGHTS) + 30_000
    run = _common() | {
        "method": {"name": method.name, "label": method.label, "fields": method.fields},
        "lr": lr,
        "seed": seed,
        "purpose": purpose,
        "train": {
            "steps": steps,
            "best_step": best["step"],
            "examples": 960,
            "seconds": 120 * 420 / method.speed,
            "tokens_per_second": method.speed * rng.uniform(0.96, 1.04),
            "curve": [
                {"step": step, "loss": loss + (2.3 - loss) * math.exp(-step / 15) + rng.gauss(0, 0.05)}
                for step in range(1, steps + 1)
            ],
            "validation": validation,
        },
        "validation_loss": best["loss"],
        "scores": _scores(score, items) if purpose == "final" else {},
        "parameters": {"trainable": method.trainable, "total": TOTAL},
        "adapter_bytes": size,
        "memory": {
            "peak": HELD + sum(parts.values()),
            "baseline": HELD + WEIGHTS,
            **parts,
            "predicted": predicted,
        },
        "latency": None,
        "forgetting": None,
    }
    if purpose == "final":
        added = method.latency + rng.uniform(-0.01, 0.01)
        change = method.forgetting * rng.uniform(0.9, 1.1)
        run["latency"] = {
            "base_ms_per_token": base_ms,
            "adapted_ms_per_token": base_ms * (1 + added),
            "added": added,
        }
        run["forgetting"] = {
            "text": "tinyshakespeare",
            "base_perplexity": 40.0,
            "perplexity": 40.0 * (1 + change),
            "change": change,
        }
        if samples:
            run["samples"] = _samples(method.score, rng)
    return run


def _failing(run: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Full fine-tuning diverges at its highest rate; one seed of prefix tuning runs out of memory."""
    reason = None
    if run["method"]["name"] == "full" and run["lr"] == 3e-4 and run["purpose"] == "search":
        reason = "loss became not finite at step 14"
    if run["method"]["name"] == "prefix" and run["purpose"] == "final" and run["seed"] == seeds - 1 > 0:
        reason = "killed: out of memory (limit 4.0 GB)"
    if reason is None:
        return run
    empty = dict.fromkeys(
        ("train", "validation_loss", "parameters", "adapter_bytes", "memory", "latency", "forgetting")
    )
    kept = {key: value for key, value in run.items() if key != "samples"}
    return kept | empty | {"status": "failed", "error": reason, "scores": {}}
