"""Does llama.cpp answer with our GGUF files as the model here does? Greedy, token for token.

    pip install xllamacpp                      # in an environment of its own: llama.cpp with Python's names
    python benchmarks/llama_cpp.py --python path/to/that/bin/python      # some minutes

The adapters that benchmarks/merging.py trains are exported for SmolLM2-135M-Instruct in fp32: the bare base, the base
with the adapter merged, and the adapter alone, which llama.cpp adds to the bare base. To the text of four prompts, two
of either task, it answers up to 40 tokens, as transformers does with the adapter here. The result goes to
benchmarks/results/llama_cpp.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NEW = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, default=Path("runs/merging"))
    parser.add_argument("--python", type=Path, help="an interpreter that has xllamacpp")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(answers_of_llama_cpp(**json.loads(arguments.worker))))
        return
    from side_by_side import setup

    import halka
    from halka.data.chat import write
    from halka.models.loading import load_base
    from merging import BASE, TASKS, tasks, trained

    trained(arguments.adapters, 60)
    model = halka.adapt(*load_base(BASE, dtype="float32", device="cpu"))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary)
        halka.export(model, None, files / "base.gguf", format="gguf")
        for name, task in tasks(2).items():
            halka.load(model, arguments.adapters / name, name=name)
            merged = halka.export(model, name, files / f"{name}.gguf", format="gguf")
            alone = halka.export(model, name, files / f"{name}-lora.gguf", format="lora-gguf")
            texts = [
                str(each)
                for each in write([each.prompt for each in task.test], model.tokenizer, generation_prompt=True)
            ]
            ways = {
                "merged": {"model": str(merged), "lora": None},
                "adapter beside the base": {"model": str(files / "base.gguf"), "lora": str(alone)},
            }
            here = [answer_here(model, name, text) for text in texts]
            for way, given in ways.items():
                command = [str(arguments.python), __file__, "--worker", json.dumps({**given, "texts": texts})]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                there = json.loads(done.stdout.splitlines()[-1])
                end = model.tokenizer.eos_token_id
                found_there = [[each for each in other["tokens"] if each != end] for other in there["answers"]]
                same = [one == other for one, other in zip(here, found_there, strict=True)]
                counts = [model.tokenizer.encode(text, add_special_tokens=False) for text in texts]
                alike = [len(one) == other["prompt"] for one, other in zip(counts, there["answers"], strict=True)]
                found[f"{name}, {way}"] = {
                    "same": sum(same),
                    "of": len(same),
                    "prompts_tokenised_alike": sum(alike),
                    "answers": [model.tokenizer.decode(each) for each in here],
                }
                print(name, way, found[f"{name}, {way}"], flush=True)
                llama = there["version"]
    result = {
        "setup": setup("halka", "torch", "transformers", "gguf"),
        "llama.cpp": llama,
        "base": BASE,
        "tasks": list(TASKS),
        "tokens": NEW,
        "found": found,
    }
    (HERE / "results" / "llama_cpp.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def answer_here(model: Any, name: str, text: str) -> list[int]:
    import torch

    ids = torch.tensor([model.tokenizer.encode(text, add_special_tokens=False)])
    with torch.inference_mode(), model.use(name):
        made = model.base.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return [int(each) for each in made[0, ids.shape[1] :] if each != model.tokenizer.eos_token_id]


def answers_of_llama_cpp(model: str, lora: str | None, texts: list[str]) -> dict[str, Any]:
    """In an interpreter that has xllamacpp: of each text the greedy answer's tokens, and how many the prompt has."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = model
    asked.n_ctx, asked.n_parallel, asked.warmup, asked.verbosity = 1024, 1, False, -1
    asked.cpuparams.n_threads = 1
    if lora is not None:
        asked.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(lora, 1.0)]
    server = xllamacpp.Server(asked)
    answers = []
    for text in texts:
        told = server.handle_completions(
            {"prompt": text, "max_tokens": NEW, "temperature": 0, "top_k": 1, "cache_prompt": False, "logprobs": 1}
        )
        tokens = [each["id"] for each in told["choices"][0]["logprobs"]["content"]]
        answers.append({"tokens": tokens, "prompt": told["usage"]["prompt_tokens"]})
    return {"answers": answers, "version": f"xllamacpp {version('xllamacpp')}"}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    main()
