"""`/v1/models` lists the base and the caller's adapters, and nothing else."""

from __future__ import annotations


def test_the_base_and_its_adapters(visitor):
    listed = visitor.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [entry["id"] for entry in listed["data"]] == ["tiny", "words", "bottleneck", "lora", "prefix"]
    for entry in listed["data"]:
        assert entry["object"] == "model"
        assert isinstance(entry["created"], int)
        assert visitor.get(f"/v1/models/{entry['id']}").json() == entry


def test_an_unknown_model_is_a_404_in_openais_shape(visitor):
    answer = visitor.get("/v1/models/nobody")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found"
    assert set(error) == {"message", "type", "param", "code"}
