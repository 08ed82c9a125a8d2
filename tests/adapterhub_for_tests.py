"""AdapterHub's folders among the fixtures, the bases they are for, and what its library computed with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from halka.storage.formats.format import Contents

FIXTURES = Path(__file__).parent / "fixtures" / "adapterhub"
sys.path.insert(0, str(FIXTURES))
from bases import base, ids  # noqa: E402, F401
from written import cases, classifier, made  # noqa: E402, F401

EXPECTED = load_file(FIXTURES / "expected.safetensors")
REFUSED = ("gated", "compacter", "invertible")
HEADS = ("classifier", "flexible")
READ = [case for case in EXPECTED if case.split("/")[1] not in (*REFUSED, *HEADS) and case != "bert/dora"]


def files(case: str) -> Contents:
    """A fixture as its files hold it."""
    folder = FIXTURES / case
    config = json.loads((folder / "adapter_config.json").read_text())
    if (folder / "adapter.safetensors").exists():
        return Contents(config, load_file(folder / "adapter.safetensors"))
    return Contents(config, torch.load(folder / "pytorch_adapter.bin", weights_only=True))
