"""An advice and the evidence of all probes, as the advisor gives them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from halka.advisor.advice import Advice
from halka.advisor.evidence import (
    Cleanliness,
    Evidence,
    Fit,
    Knowledge,
    Learnability,
    Option,
    Strength,
    Subject,
    Trial,
)
from halka.advisor.reasons import Reason
from halka.advisor.verdict import Prospect
from halka.evaluation.metrics import Score

GB, MB = 10**9, 10**6
UNUSABLE = "2 of 400 examples cannot be used with this base, the first: support.jsonl:7 is too long"


def about(value: float, half: float, n: int = 100) -> Score:
    return Score(value, value - half, value + half, n)


def trial(name: str, method: str, lr: float, examples: int, curve: list[float], **further: Any) -> Trial:
    fields = {"lora": {"rank": 8, "alpha": 16}, "ia3": {}, "full": {}}[method]
    steps = 12 * (len(curve) - 1)
    points = tuple((12 * i, loss) for i, loss in enumerate(curve))
    trained = {"lora": 2_442_240, "ia3": 131_040, "full": 134_515_008}[method]
    made = Trial(name, method, fields, lr, examples, False, steps, trained, points, about(curve[-1], 0.06))
    return replace(made, **further)


def option(method: str, memory: int, fits: bool | None, batch: int | None, trained: int, **further: Any) -> Option:
    made = Option(method, None, False, memory, fits, batch, trained, 0.41, 5 * MB, 560 * MB)
    return replace(made, **further)


def full_evidence() -> Evidence:
    losses = {
        "closed": {"all": about(3.12, 0.11), "form": about(2.31, 0.12), "content": about(4.26, 0.16)},
        "examples": {"all": about(2.44, 0.10), "form": about(1.22, 0.09), "content": about(4.11, 0.17)},
        "documents": {"all": about(2.31, 0.12), "form": about(2.05, 0.12), "content": about(2.66, 0.18)},
        "both": {"all": about(1.62, 0.09), "form": about(0.98, 0.08), "content": about(2.49, 0.17)},
    }
    return Evidence(
        subject=Subject(
            "smollm2-135m", 134_515_008, "support.jsonl", 400, 96, "token_f1", 256, documents=38, tasks=3, target=0.7
        ),
        strength=Strength(
            shots=4,
            losses={name: losses[name]["all"] for name in ("closed", "examples")},
            unigram=5.43,
            scores={"closed": about(0.142, 0.031), "examples": about(0.318, 0.046)},
            values={"closed": (0.1,), "examples": (0.3,)},
            trivial={"majority": about(0.081, 0.02), "copy": about(0.112, 0.024)},
        ),
        knowledge=Knowledge(
            losses=losses,
            tokens={"all": 2411, "form": 1406, "content": 1005},
            found=0.83,
            scores={"documents": about(0.471, 0.052), "both": about(0.529, 0.05)},
        ),
        learnability=Learnability(
            batch_size=8,
            seconds=214.0,
            trials=(
                trial("lora", "lora", 2e-3, 400, [3.12, 2.02, 1.71, 1.58, 1.52], expected=about(1.44, 0.08)),
                trial("lora, half", "lora", 2e-3, 200, [3.12, 2.11, 1.86, 1.77, 1.74]),
                trial("lora, quarter", "lora", 2e-3, 100, [3.12, 2.21, 2.03, 2.00, 2.02]),
                trial(
                    "lora with passages",
                    "lora",
                    2e-3,
                    400,
                    [2.31, 1.41, 1.12, 1.01, 0.97],
                    passages=True,
                    expected=about(0.88, 0.07),
                    score=about(0.684, 0.055),
                ),
                trial("ia3", "ia3", 1e-2, 400, [3.12, 2.61, 2.33, 2.20, 2.13], expected=about(1.93, 0.12)),
                trial("full", "full", 1e-5, 400, [3.12, 2.31, 1.94, 1.77, 1.68], expected=about(1.55, 0.09)),
            ),
            times=4,
            more=about(1.31, 0.12),
            agreement=(0.81, 0.62),
        ),
        cleanliness=Cleanliness(6, 4, 3, 371, {"repeated": ("support.jsonl:12", "support.jsonl:40")}),
        fit=Fit(
            device="NVIDIA RTX A2000",
            memory=6 * GB,
            process=500 * MB,
            length=256,
            batch_size=8,
            tasks=3,
            options=(
                option("lora", 2210 * MB, True, 24, 2_442_240),
                option("ia3", 1890 * MB, True, 28, 131_040, step_seconds=0.38),
                option("prefix", 1750 * MB, True, 31, 368_640, quantize="nf4"),
                option("full", 5210 * MB, True, 9, 134_515_008, checkpointing=True, step_seconds=1.2, stored=807 * MB),
            ),
            parts={
                "lora": parts(538, 10, 20, 1642, 0),
                "ia3": parts(539, 1, 1, 1349, 0),
                "prefix": parts(541, 2, 3, 5470, 0),
                "full": parts(1076, 538, 1076, 4080, 0),
            },
        ),
        missing={"examples": UNUSABLE},
    )


def parts(*megabytes: int) -> dict[str, int]:
    names = ("weights", "gradients", "optimizer", "activations", "allocator")
    return {name: number * MB for name, number in zip(names, megabytes, strict=True)}


def full_advice() -> Advice:
    return Advice(
        choice="peft+rag",
        confidence=0.87,
        prospects=(
            Prospect("prompt", about(0.318, 0.046), "96 answers with 4 worked examples"),
            Prospect("rag", about(0.529, 0.05), "96 answers with passages and worked examples"),
            Prospect("peft", about(0.452, 0.08), "loss of the pilot, as a score"),
            Prospect("peft+rag", about(0.721, 0.062), "a pilot with passages, and what more steps would bring"),
            Prospect("full", about(0.701, 0.085), "a pilot of full fine-tuning"),
            Prospect("data", about(0.741, 0.09), "the curve over 100, 200 and 400 examples"),
        ),
        reasons=(
            Reason("documents", "Passages take the loss of content from 4.26 to 2.66: the answers stand in them."),
            Reason("form", "Training takes the loss of form from 2.31 to 0.71, further than 4 examples do (1.22)."),
            Reason("full_no_better", "Full fine-tuning ends at 1.55, LoRA at 1.44, with 1.8 % of the parameters."),
        ),
        change=(
            Reason(
                "found", "Passages that hold the answer in fewer than half of the questions would speak for PEFT alone."
            ),
            Reason("target", "A target of 60 % would be met by more examples in the prompt and retrieval."),
        ),
        missing=(Reason("examples", f"examples: {UNUSABLE}"),),
        commands=(
            "halka docs add support --from documents/",
            "halka docs examples support support.jsonl -o raft.jsonl",
            "halka train smollm2-135m raft.jsonl --method lora --lr 2e-3 --steps 400 -o adapter",
        ),
        settings={"method": "lora", "fields": {"rank": 8, "alpha": 16}, "lr": 2e-3, "steps": 400},
    )
