"""What each result was measured on, and what ran beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def measured(record: Any) -> list[list[str]]:
    """The pieces of benchmarks/all.py: date, commit, machine, its speed before and after, and others' load."""
    head = ["Piece", "Date", "Commit", "Processor", "Threads", "Torch, transformers", "bf16, GFLOP/s", "fp32", "GB/s"]
    rows = [[*head, "Cores of others", "To its end"]]
    for name, ran in record.items():
        speeds = [_before_and_after(ran["speed"], key) for key in ("gflops", "gflops_fp32", "gigabytes")]
        versions = ", ".join(ran["versions"][package] for package in ("torch", "transformers"))
        cpu = ran["machine"]["cpu"].replace("(R)", "").replace(" Processor", "")
        cells = [name, ran["date"], str(ran["commit"]), cpu, str(ran["threads"]), versions, *speeds]
        rows.append([*cells, f"{ran['cores_of_others']:.2f}", "yes" if ran["whole"] else "cut off"])
    return rows


def _before_and_after(speed: Any, key: str) -> str:
    return ", ".join(f"{speed[when][key]:.0f}" if key in speed[when] else "–" for when in ("before", "after"))


TABLES: dict[str, tuple[str, Callable[[Any], list[list[str]]]]] = {"measured": ("measured", measured)}
