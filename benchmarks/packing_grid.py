"""The losses and gradients of packed batches beside those of padded ones: every method, decoder and company.

    python benchmarks/packing_grid.py                # all cases; a run that was cut off goes on
    python benchmarks/packing_grid.py --minutes 30   # as many as fit, and their result

On tiny fp32 bases of all decoder architectures: every form of every method, alone and in one batch with other adapters,
on examples that share nothing, a beginning, beginnings of beginnings, or labels in these (the cases of
tests/packed_cases.py, of which the suite tries pairs). Beside this whole product, each architecture, company and way to
share has cases with a window shorter than the texts, with layers computed again in backward, on int8 linear layers, and
with all three, each with four of the methods in turn; these cases come first, the others in random order.

It writes the worst differences, relative to padded batches, by each dimension to benchmarks/results/packing_grid.json,
and keeps what is computed so far beside it (packing_grid.jsonl) until nothing is missing. The worst case is computed in
float64, too: how far both forms are from that, and from each other there, says what of its difference is rounding.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from side_by_side import setup

HERE = Path(__file__).parent
RESULTS = HERE / "results"
sys.path.insert(0, str(HERE.parent / "tests"))

from packed_cases import (  # noqa: E402  of the tests
    ALL_FORMS,
    COMPANIES,
    SHARING,
    differences,
    losses_and_gradients,
    model_of,
    possible,
)
from tiny import CONFIGS  # noqa: E402

Case = Mapping[str, Any]
PLAIN: Case = {"window": False, "checkpointing": False, "quantize": None}
METHODS = 4  # of each architecture, company and way to share with something added
ADDED: tuple[Case, ...] = (
    {"window": True},
    {"checkpointing": True},
    {"quantize": "int8"},
    {"window": True, "checkpointing": True, "quantize": "int8"},
)


def cases(architectures: Sequence[str]) -> list[Case]:
    """Those with something added, then the product without, shuffled; always the same."""
    whole = [
        {"architecture": architecture, "method": method, "company": company, "sharing": sharing, **PLAIN}
        for architecture, method, company, sharing in product(architectures, ALL_FORMS, COMPANIES, SHARING)
    ]
    whole = [case for case in whole if possible(case)]
    random.Random(0).shuffle(whole)
    return [*_with_additions(architectures), *whole]


def _with_additions(architectures: Sequence[str]) -> Iterator[Case]:
    for added in ADDED:
        used = Counter[Any]()
        for architecture, company, sharing in product(architectures, COMPANIES, SHARING):
            case = {"architecture": architecture, "company": company, "sharing": sharing, **PLAIN, **added}
            methods = [method for method in ALL_FORMS if possible({**case, "method": method})]
            for method in sorted(methods, key=used.__getitem__)[:METHODS]:
                used[method] += 1
                yield {**case, "method": method}


def difference(case: Case) -> float:
    """The worst one between the packed batch's losses and gradients and the padded one's."""
    model, groups = model_of(case)
    packed, padded = (losses_and_gradients(model, groups, packed=way) for way in (True, False))
    return max(differences(packed, padded))


@contextmanager
def everything_in_float64() -> Iterator[None]:
    """Within it float32 is float64 to whatever names it, as the bases' norms and routers do whatever their type is."""
    float32, floats = torch.float32, torch.float
    torch.float32 = torch.float = torch.float64
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.float32, torch.float = float32, floats
        torch.set_default_dtype(float32)


def beside_float64(case: Case) -> dict[str, float] | None:
    """The worst differences of both forms in float32 from padded batches in float64, and of packed ones there.

    None for quantised bases, whose numbers are of their own type.
    """
    if case["quantize"]:
        return None
    model, groups = model_of(case)
    packed, padded = (losses_and_gradients(model, groups, packed=way) for way in (True, False))
    model, groups = model_of(case)
    model.base.set_experts_implementation("eager")  # torch's grouped products take no float64
    model.base.double()
    for name in model.adapters:
        for parameter in model.parameters(name):
            parameter.data = parameter.data.double()
    with everything_in_float64():
        packed64, exact = (losses_and_gradients(model, groups, packed=way) for way in (True, False))
    ways = {"packed": packed, "padded": padded, "packed in float64": packed64}
    return {way: max(differences([tensor.double() for tensor in tensors], exact)) for way, tensors in ways.items()}


def plain(case: Case) -> dict[str, str]:
    """The case as words, which name it in files."""
    return {name: str(value) for name, value in case.items()}


def result(cases: Sequence[Case], worst: Mapping[str, float]) -> dict[str, Any]:
    """Of the cases that were computed, the worst differences by each dimension; `worst` is by the case as JSON."""
    by: dict[str, dict[str, Any]] = {name: {} for name in cases[0]}
    done = [(case, worst[key]) for case in cases if (key := json.dumps(plain(case))) in worst]
    for case, value in done:
        for name in by:
            key = case[name].name if name == "method" else str(case[name])
            own = by[name].setdefault(key, {"cases": 0, "worst": 0.0})
            own["cases"] += 1
            own["worst"] = max(own["worst"], value)
    worst_case, largest = max(done, key=lambda pair: pair[1])
    return {
        "cases": len(done),
        "possible": len(cases),
        "dtype": "float32",
        "worst": largest,
        "worst_case": plain(worst_case),
        "worst_case_beside_float64": beside_float64(worst_case),
        "by": {name: dict(sorted(own.items())) if name == "method" else own for name, own in by.items()},
        "setup": setup("halka", "torch", "transformers"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", default=list(CONFIGS), help="only these")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no case is begun")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result files")
    arguments = parser.parse_args()
    begun, every, commit = time.monotonic(), cases(arguments.architectures), setup()["commit"]
    clean = commit is not None and not commit.endswith("-dirty")  # else equal names may be of unlike code
    kept, worst = arguments.out / "packing_grid.jsonl", dict[str, float]()
    if kept.exists():
        lines = [json.loads(line) for line in kept.read_text().splitlines()]
        worst = {json.dumps(line["case"]): line["difference"] for line in lines if line["commit"] == commit and clean}
    with kept.open("a") as file:
        for number, case in enumerate(every):
            if time.monotonic() - begun > 60 * arguments.minutes:
                break
            name = plain(case)
            if (key := json.dumps(name)) not in worst:
                worst[key] = difference(case)
                file.write(json.dumps({"commit": commit, "difference": worst[key], "case": name}) + "\n")
                file.flush()
            if number % 100 == 0:
                print(number, "of", len(every), flush=True)
    found = result(every, worst)
    (arguments.out / "packing_grid.json").write_text(json.dumps(found, indent=1) + "\n")
    if found["cases"] == found["possible"]:
        kept.unlink()


if __name__ == "__main__":
    main()
