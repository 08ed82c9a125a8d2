"""The embedder of the sentence-transformers library: how it is loaded."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import pytest
from tokenizers import Tokenizer

from embedder_for_tests import TEXT, sentence_embedder, static_embedder
from halka.rag.collection import Collection
from halka.rag.embed import PASSAGE, SentenceEmbedder
from halka.rag.retrieve import Retriever
from halka.rag.store import Scope
from halka.util.errors import HalkaError


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
    del sys.modules["sentence_transformers"]
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").filters


def test_passages_fit_the_embedder_whatever_its_tokenizers_file_says_of_padding(tmp_path):
    """MiniLM's pads every text to 128 tokens and cuts it there, until something was embedded."""
    folder = sentence_embedder(tmp_path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(40)
    tokenizer.save(str(folder / "tokenizer.json"))
    collection = Collection(tmp_path / "faq", SentenceEmbedder(str(folder)))
    (event,) = collection.put([("rules", "# Rules\n\n" + "\n\n".join([f"{TEXT}."] * 40))])
    found = collection.store.passages("rules", range(event.passages), Scope())
    counts = [len(collection.embedder.tokenizer.encode(each.searched).ids) for each in found]
    assert len(counts) > 4
    assert max(counts) <= collection.embedder.limit
    assert {each.heading for each in found} == {"Rules"}


def test_passages_are_short_however_long_the_texts_of_an_embedder_may_be(tmp_path):
    folder = sentence_embedder(tmp_path)
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": 8192}))
    assert SentenceEmbedder(str(folder)).limit == PASSAGE


def test_loading_an_embedder_shows_no_bars(tmp_path, capfd):
    folder = sentence_embedder(tmp_path)
    capfd.readouterr()
    SentenceEmbedder(str(folder))
    assert capfd.readouterr() == ("", "")


def test_an_embedder_without_layers_takes_texts_of_any_length(tmp_path):
    embedder = SentenceEmbedder(static_embedder(tmp_path / "static"))
    assert (embedder.limit, embedder.width) == (PASSAGE, 32)
    assert len(embedder.tokenizer.encode("the parcels").ids) == 2
    assert embedder.passages(["the parcels", "salary"]).shape == (2, 32)


def test_a_collection_knows_its_embedder_by_its_vectors(tmp_path):
    here, there = static_embedder(tmp_path / "here"), tmp_path / "there"
    collection = Collection(tmp_path / "faq", SentenceEmbedder(here))
    [*collection.put([("open", "the parcels"), ("secret", "salary secret")])]
    shutil.move(here, there)
    moved = Collection(tmp_path / "faq")
    assert [event.document for event in moved.remove(["secret"])] == ["secret"], "no embedder is needed to remove"
    assert [document.name for document in moved.documents()] == ["open"]
    assert moved.embedded_by == str(here)
    with pytest.raises(HalkaError, match="cannot be loaded as an embedder"):
        _ = moved.embedder
    assert Collection(tmp_path / "faq", SentenceEmbedder(there)).embedded_by == str(there)
    assert Retriever(Collection(tmp_path / "faq")).search("the parcels")[0].cosine == pytest.approx(1, abs=1e-3)
    static_embedder(there, seed=1)
    trained = Collection(tmp_path / "faq")
    with pytest.raises(HalkaError, match="there, whose weights have changed: vectors of two embedders"):
        Retriever(trained).search("the parcels")
    trained.remove(["open"])


def test_a_collection_of_an_older_version_knows_its_embedder_by_its_name(tmp_path):
    folder = static_embedder(tmp_path / "embedder")
    collection = Collection(tmp_path / "faq", SentenceEmbedder(folder))
    [*collection.put([("open", "the parcels")])]
    settings = tmp_path / "faq" / "collection.json"
    settings.write_text(json.dumps({"embedder": str(folder), "roots": []}))
    assert Retriever(Collection(tmp_path / "faq")).search("the parcels")
    with pytest.raises(HalkaError, match=f"was embedded by {folder}, not "):
        Collection(tmp_path / "faq", SentenceEmbedder(static_embedder(tmp_path / "other")))
