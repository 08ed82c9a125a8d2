"""The variables of the processes that a server starts: jobs, and readers of documents."""

from __future__ import annotations

from collections.abc import Mapping

from halka.util.openmp import share_cores

# What variables begin with that are not for these
SECRET = ("HALKA_SERVE_", "HALKA_TRAIN_", "HALKA_API_KEY", "VLLM_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """These variables for such a process: no settings of the server, no keys, and no hub."""
    kept = {name: value for name, value in variables.items() if not name.startswith(SECRET)}
    share_cores(kept)
    return {**kept, "HF_HUB_OFFLINE": "1"}
