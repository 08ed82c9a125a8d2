"""Embeddings as clients ask for them: numbers or base64, one text or many, and no tokens of another tokenizer."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from embedder_for_tests import WordEmbedder
from halka.rag.collection import BATCH
from serving_for_tests import until


def ask(client, **body):
    return client.post("/v1/embeddings", json={"model": "words", **body})


def test_a_text_or_a_list_as_numbers_or_base64(visitor):
    plain = ask(visitor, input="parcels are sent").json()
    assert {**plain, "data": None} == {
        "object": "list",
        "data": None,
        "model": "words",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }
    (entry,) = plain["data"]
    expected = WordEmbedder().query("parcels are sent")
    assert (entry["object"], entry["index"]) == ("embedding", 0)
    np.testing.assert_allclose(entry["embedding"], expected)
    many = ask(visitor, input=["parcels are sent", "refunds"], encoding_format="base64", user="me").json()["data"]
    assert [entry["index"] for entry in many] == [0, 1]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(many[0]["embedding"]), "<f4"), expected)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"input": [1, 2, 3]}, "check_embedding_ctx_length=False"),
        ({"input": [[1, 2], [3]]}, "check_embedding_ctx_length=False"),
        ({"input": "a", "dimensions": 8}, "dimensions is not supported"),
        ({"input": []}, "input"),
        ({"input": ""}, "input[0] is empty"),
        ({"input": ["a", "  "]}, "input[1] is empty"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": "word " * 65}, "input[0] has 65 tokens, and words reads 64"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "more": 1}, "unknown parameter 'more'"),
    ],
)
def test_what_is_not_supported_is_named(visitor, body, reason):
    response = ask(visitor, **body)
    assert response.status_code == 400
    assert reason in response.json()["error"]["message"]
    assert response.json()["error"]["param"]


def test_a_search_goes_between_two_batches_of_many_texts(server):
    """One thread embeds, for all tenants."""
    client, threads, embedder = server.client, server.service.threads, server.service.embedders.get()
    assert client.post("/v1/collections", json={"name": "faq"}).status_code == 201
    order, batch, query = list[str](), embedder.passages, embedder.query

    def embed(texts):
        order.append("batch")
        if len(order) == 1:
            until(lambda: threads.near.search.limiter.statistics().tasks_waiting > 0, "nobody searches")
        return batch(texts)

    def search(text):
        order.extend(["query"] if text == "Parcels?" else [])
        return query(text)

    embedder.passages = embed
    with ThreadPoolExecutor(1) as pool:
        many = pool.submit(ask, client, input=["parcels"] * 2 * (BATCH + 1))
        until(lambda: order, "nothing is embedded")
        embedder.query = search
        found = client.post("/v1/collections/faq/search", json={"query": "Parcels?", "mode": "vectors"})
        assert found.status_code == 200
        assert len(many.result().json()["data"]) == 2 * (BATCH + 1)
    assert order[:3] == ["batch", "query", "batch"]


def test_the_embedder_is_a_model_of_its_own(visitor):
    assert "words" in {model["id"] for model in visitor.get("/v1/models").json()["data"]}
    for model in ("tiny", "lora", "nothing"):
        response = ask(visitor, model=model, input="a")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert ask(visitor, input="a", dimensions=None, encoding_format=None).status_code == 200
