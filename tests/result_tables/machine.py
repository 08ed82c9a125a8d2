"""Where results are from: the processors, threads, versions and commits that their files name, and what ran beside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

NOTHING = "–"
NOT_RECORDED = "not recorded"
HEAD = ["Results", "Processor", "Threads", "Torch", "Commit", "Cores of others", "bf16, GFLOP/s", "fp32", "GB/s"]
WITHOUT = {"measured.json", "laws.json"}  # the record of what ran, and verdicts on other files
SPEEDS = ("gflops", "gflops_fp32", "gigabytes")
COMMITS = 3  # that are named; of more there is their number


def origins(results: Path) -> list[list[str]]:
    """A row for each results file, and for each folder of runs.

    Others' load, and the machine's speed before and after, are of `benchmarks/all.py`, where it ran that commit.
    """
    record = results / "measured.json"
    ran = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    rows = [HEAD]
    for name, setups in _setups(results):
        commits = sorted({setup["commit"] for setup in setups} - {None})
        own = [piece for piece in ran.values() if fnmatch(name, piece["result"]) and piece["commit"] in commits]
        rows.append(
            [
                f"`{name}`",
                _listed({_processor(setup["machine"]) for setup in setups}),
                _listed({str(setup["machine"].get("threads", NOTHING)) for setup in setups}),
                _listed({setup["versions"]["torch"].partition("+")[0] for setup in setups if _has_torch(setup)}),
                _listed(set(commits)) if len(commits) <= COMMITS else f"{len(commits)} commits",
                _listed({f"{piece['cores_of_others']:.2f}" for piece in own}, NOT_RECORDED),
                *(_listed({_speed(piece["speed"], key) for piece in own}) for key in SPEEDS),
            ]
        )
    return rows


def _setups(results: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for path in sorted(results.iterdir()):
        files = [path] if path.suffix == ".json" else sorted(path.rglob("*.json")) if path.is_dir() else []
        found = [setup for file in files for setup in _within(json.loads(file.read_text(encoding="utf-8")))]
        if found and path.name not in WITHOUT:
            yield path.name, found


def _within(content: Any) -> Iterator[dict[str, Any]]:
    """Each part of a result that names a machine and a commit, at any depth."""
    if isinstance(content, dict) and "commit" in content and isinstance(content.get("machine"), dict):
        if "cpu" in content["machine"]:
            yield content
    elif isinstance(content, dict | list):
        for inner in content.values() if isinstance(content, dict) else content:
            yield from _within(inner)


def _processor(machine: dict[str, Any]) -> str:
    return machine["cpu"].replace("(R)", "").replace(" Processor", "")


def _has_torch(setup: dict[str, Any]) -> bool:
    return "torch" in setup.get("versions", {})


def _speed(speed: Any, key: str) -> str:
    return " to ".join(f"{speed[when][key]:.0f}" for when in ("before", "after") if key in speed[when])


def _listed(words: set[str], otherwise: str = NOTHING) -> str:
    return ", ".join(sorted(words)) or otherwise
