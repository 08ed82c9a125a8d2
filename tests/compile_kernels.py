"""Compiles the kernels of the engine and of training before the tests begin: many processes need them at once.

PYTHONPATH=src:tests python tests/compile_kernels.py float32 bfloat16
"""

import sys

import torch

from engine_for_tests import Engine, Request, model_of, prompts
from halka import LoRA, Prefix, fit
from halka.engine.request import Stopping
from training_for_tests import items


def main(precisions: list[str]) -> None:
    for precision in precisions:
        model = model_of(families={"lora": LoRA(rank=4), "prefix": Prefix(length=3)}).to(getattr(torch, precision))
        asked = [
            Request(prompt, (None, "lora", "prefix")[number % 3], stopping=Stopping(max_new_tokens=3))
            for number, prompt in enumerate(prompts(6))
        ]
        with Engine(model) as engine:
            assert len([*engine.run(asked)]) == len(asked)
        fit(model, "lora", items(), {"steps": 1})


if __name__ == "__main__":
    main(sys.argv[1:])
