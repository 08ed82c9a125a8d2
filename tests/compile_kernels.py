"""Compiles the engine's kernels before the tests begin: else each of many processes would, where none are kept yet.

PYTHONPATH=src:tests python tests/compile_kernels.py float32 bfloat16
"""

import sys

import torch

from engine_for_tests import Engine, Request, model_of, prompts
from halka import LoRA, Prefix
from halka.engine.request import Stopping


def main(precisions: list[str]) -> None:
    for precision in precisions:
        model = model_of(families={"lora": LoRA(rank=4), "prefix": Prefix(length=3)}).to(getattr(torch, precision))
        asked = [
            Request(prompt, (None, "lora", "prefix")[number % 3], stopping=Stopping(max_new_tokens=3))
            for number, prompt in enumerate(prompts(6))
        ]
        with Engine(model) as engine:
            assert len([*engine.run(asked)]) == len(asked)


if __name__ == "__main__":
    main(sys.argv[1:])
