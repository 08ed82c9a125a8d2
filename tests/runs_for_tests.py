"""A measured run, as an experiment describes it."""

from __future__ import annotations

from pathlib import Path

from halka.studies.measure import Spec


def a_run(made: Path, method: str = "lora", **changes) -> Spec:
    given = {
        "experiment": "e",
        "task": str(made / "task.yaml"),
        "base": str(made / "base"),
        "dtype": "float32",
        "method": method,
        "label": method,
        "fields": {"rank": 4} if method == "lora" else {},
        "train": {"steps": 6, "batch_size": 4, "evaluate_every": 2, "lr": 1e-2, "seed": 0},
    }
    return Spec(**{**given, **changes})
