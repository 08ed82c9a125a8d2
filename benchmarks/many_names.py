"""What a server does for the number of its adapters alone, with 100, 1,000 and 10,000 of them in its store.

    python benchmarks/many_names.py      # some twenty minutes on two cores, most of them for writing; 2 GB of disk
    python benchmarks/many_names.py --base meta-llama/Llama-3.1-8B --rank 16 --folder /disk --out large.json    # 2 TB

SmolLM2-135M-Instruct in bf16, small LoRAs (rank 1 on the values; with --rank on all linear layers). `halka serve`
starts on a store of each size, and one client asks, one request after the other: the names of models, the list of
adapters, its first page and a search, one adapter by its name, a name that is not there, an answer of one token by an
adapter that was not in memory yet, and by the same again. Medians, in milliseconds; sizes in bytes. The result goes to
benchmarks/results/many_names.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from serving import free_port, server, serving_command
from side_by_side import setup

import halka
from halka.models.loading import load_base

RESULT = Path(__file__).parent / "results" / "many_names.json"
SIZES = (100, 1000, 10_000)
TIMES, FIRSTS = 7, 40  # how often each is asked; adapters that are used for the first time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--folder", type=Path, help="where the adapters are kept for another time")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rank", type=int, help="of LoRAs on all linear layers, in the place of the small ones")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    small = halka.LoRA(rank=1, targets=("attn.v",))
    method = small if arguments.rank is None else halka.LoRA(rank=arguments.rank)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        for size in sorted(arguments.sizes):
            grow(arguments.base, method, folder / str(size) / "store", size)
            rows.append({"adapters": size, **measured(arguments.base, folder / str(size), size)})
            print(rows[-1], flush=True)
    result = {"setup": setup("halka", "torch", "transformers", "fastapi", "uvicorn"), "rows": rows}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def grow(base: str, method: halka.LoRA, folder: Path, size: int) -> None:
    """Save adapters of random values until the store has that many."""
    store = halka.AdapterStore(folder)
    model = halka.adapt(*load_base(base, device="cpu"))
    adapter = model.add("drawn", method)
    for number in range(len(store.names()), size):
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_(std=0.01)
        store.save(model, "drawn", stored_as=name_of(number))


def name_of(number: int) -> str:
    return f"task-{number:05}"


def measured(base: str, folder: Path, size: int) -> dict[str, Any]:
    port, started = free_port(), time.perf_counter()
    with server([*serving_command(folder / "store", port), "--base", base], port, "/readyz"):
        ready = time.perf_counter() - started
        ask(port, "/v1/chat/completions", body_of(base))  # kernels are compiled
        step = size // FIRSTS or 1
        names = [name_of(number) for number in range(0, size, step)][:FIRSTS]
        return {
            "start_seconds": ready,
            "models": repeated(port, "/v1/models"),
            "list": repeated(port, "/v1/adapters"),
            "page": repeated(port, "/v1/adapters?count=24"),
            "search": repeated(port, "/v1/adapters?count=24&find=task-00042"),
            "one": repeated(port, f"/v1/adapters/{name_of(size // 2)}"),
            "missing": repeated(port, "/v1/chat/completions", body_of("nobody")),
            "first_answer": answered(port, names),
            "next_answer": answered(port, names[-4:] * 10),
        }


def body_of(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 1}


def repeated(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, float]:
    """The median time of a request, and the size of what comes."""
    answers = [ask(port, path, body) for _ in range(TIMES)]
    return {"ms": statistics.median(ms for ms, _ in answers), "bytes": answers[-1][1]}


def answered(port: int, names: list[str]) -> dict[str, float]:
    """The median time of an answer of one token by each of these adapters in turn, and the longest."""
    times = [ask(port, "/v1/chat/completions", body_of(name))[0] for name in names]
    return {"ms": statistics.median(times), "worst_ms": max(times)}


def ask(port: int, path: str, body: dict[str, Any] | None = None) -> tuple[float, int]:
    """Milliseconds until the whole response is there, and its bytes."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json"})
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            content = response.read()
    except urllib.error.HTTPError as error:
        content = error.read()
    return (time.perf_counter() - started) * 1000, len(content)


if __name__ == "__main__":
    main()
