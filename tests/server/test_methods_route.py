"""`/v1/methods`: what a form for a training is drawn from, which is what a training takes."""

from __future__ import annotations

from dataclasses import fields

from halka.methods import all_methods
from halka.training import TrainConfig


def test_every_method_and_setting_is_there(visitor):
    listed = visitor.get("/v1/methods").json()
    assert [method["name"] for method in listed["data"]] == [*all_methods()]
    assert listed["default"] == "lora"
    narrow = {method["name"]: method["lr"] for method in listed["data"]}
    assert (narrow["lora"], narrow["full"]) == (2e-3, 2e-4), "what a training of so narrow a base has"
    names = [f"train.{field.name}" for field in fields(TrainConfig) if field.name != "keep_every"]
    assert [setting["path"] for setting in listed["settings"]] == [*names, "best_by", "text"]


def test_a_field_has_what_a_form_needs(visitor):
    listed = visitor.get("/v1/methods").json()
    lora = next(method for method in listed["data"] if method["name"] == "lora")
    rank, *_ = lora["fields"]
    assert rank | {"help": ""} == {
        "name": "rank", "path": "rank", "flag": "--rank", "type": "integer", "choices": [], "many": False,
        "optional": False, "default": 16, "takes": "a whole number", "help": "",
    }  # fmt: skip
    settings = {setting["name"]: setting for setting in listed["settings"]}
    assert settings["batches"]["choices"] == ["packed", "padded"]
    assert (settings["steps"]["optional"], settings["steps"]["default"]) == (True, None)
    assert settings["checkpointing"]["type"] == "boolean"
    targets = next(field for field in lora["fields"] if field["name"] == "targets")
    assert (targets["many"], targets["default"]) == (True, ["linear"])
    everything = [*listed["settings"], *(field for method in listed["data"] for field in method["fields"])]
    assert all(field["help"] and field["type"] in ("integer", "number", "boolean", "string") for field in everything)


def test_the_defaults_are_taken_by_a_training(client):
    """Whatever the list says may be sent back."""
    listed = client.get("/v1/methods").json()
    data = [{"prompt": "Why?", "completion": "So."}] * 4
    defaults = {setting["path"]: setting["default"] for setting in listed["settings"] if setting["path"] != "text"}
    train = {path.removeprefix("train."): value for path, value in defaults.items() if path.startswith("train.")}
    for method in listed["data"]:
        own = {field["name"]: field["default"] for field in method["fields"]}
        job = {
            "kind": "train",
            "name": "new",
            "data": data,
            "settings": {"method": method["name"], **own, "best_by": defaults["best_by"], "train": train},
        }
        assert client.post("/v1/jobs", json=job).status_code == 201, method["name"]
