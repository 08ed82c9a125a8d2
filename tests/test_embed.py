"""The embedder of the sentence-transformers library: how it is loaded."""

from __future__ import annotations

import logging
import sys

import pytest

from halka.rag.embed import SentenceEmbedder


def test_the_library_is_imported_without_advice_on_a_kernel_that_nobody_asked_for(tmp_path, monkeypatch, caplog):
    (tmp_path / "sentence_transformers.py").write_text(
        "import logging\n"
        'log = logging.getLogger("bitsandbytes.backends.cpu.ops")\n'
        'log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please", "no")\n'
        'log.warning("something else")\n'
        "class SentenceTransformer:\n"
        "    def __init__(self, *args, **options):\n"
        '        raise ValueError("no embedder")\n'
    )
    monkeypatch.delitem(sys.modules, "sentence_transformers", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="nowhere cannot be loaded as an embedder: no embedder"):
        SentenceEmbedder("nowhere")
    monkeypatch.delitem(sys.modules, "sentence_transformers")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").filters
