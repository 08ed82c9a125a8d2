"""`AdapterFolder`: what an adapter on disk is, is called and is for, its id, and `halka.open` from it alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import halka
from classifiers import CLASSES, LABELS, classifier
from contract import disturb, ids
from halka.core import AdaptedModel
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "adapterhub"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tokenizer = chatml_tokenizer()
    tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(base) -> AdaptedModel:
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    model.add("a", halka.LoRA(rank=3))
    disturb(model, "a")
    return model


def logits(model: AdaptedModel, name: str) -> torch.Tensor:
    with torch.no_grad(), model.use(name):
        return model.base(ids()).logits


def identity(folder: Path) -> str:
    return halka.AdapterFolder.open(folder).id


def test_a_home_is_expanded(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert halka.save(model, "a", "~/saved") == tmp_path / "saved"
    assert halka.AdapterFolder.open("~/saved").name == "saved"
    halka.AdapterStore("~/store").save(model, "a", stored_as="b")
    assert halka.AdapterStore(tmp_path / "store").names() == ["b"]
    assert halka.export(model, "a", "~/peft", format="peft") == tmp_path / "peft"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peft", "saved", "store"]


def test_a_card_takes_json_alone(model, tmp_path):
    for values in ({"measurements": {"loss": torch.zeros(2)}}, {"training": {"loss": Path("a")}}):
        with pytest.raises(
            halka.HalkaError, match=rf"{next(iter(values))}: 'loss' is no JSON .*: give numbers and texts"
        ):
            halka.save(model, "a", tmp_path / "a", **values)
    assert not [*tmp_path.iterdir()]


def test_it_knows_its_format_base_kind_labels_and_files(model, base, tmp_path):
    folder = halka.AdapterFolder.open(halka.save(model, "a", tmp_path / "a", task="sums"))
    assert (folder.format.NAME, folder.name, folder.kind, folder.labels) == ("peft", "a", "causal-lm", ())
    assert folder.base_name == str(base)
    assert folder.card is not None
    assert folder.card.task == "sums"
    assert folder.config["r"] == 3
    assert [*folder.files] == ["adapter_config.json", WEIGHTS, "halka.json"]
    assert folder.size == sum(file.stat().st_size for file in folder.path.iterdir())
    assert folder.memory == 4 * model.adapter("a").count()


def test_without_a_card_the_configuration_or_a_head_beside_it_says_what_base_it_is_for(model, base, tmp_path):
    folder = halka.save(model, "a", tmp_path / "a")
    (folder / "halka.json").unlink()
    plain = halka.AdapterFolder.open(folder)
    assert (plain.card, plain.kind, plain.base_name) == (None, "causal-lm", str(base))
    theirs = halka.AdapterFolder.open(FIXTURES / "bert" / "classifier")
    assert (theirs.format.NAME, theirs.kind) == ("adapterhub", CLASSES)
    assert len(theirs.labels) == 3
    without = halka.AdapterFolder.open(FIXTURES / "bert" / "classifier", head=False)
    assert (without.kind, without.labels, without.read().head) == (None, (), None)


def test_a_base_with_a_short_name_is_called_so(model, tmp_path):
    folder = halka.save(model, "a", tmp_path / "a")
    card = json.loads((folder / "halka.json").read_text())
    card["base"]["name"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
    (folder / "halka.json").write_text(json.dumps(card))
    assert halka.AdapterFolder.open(folder).base_name == "smollm2-135m"


@pytest.mark.parametrize("place", ["runs/support", "runs/support/adapter"])
def test_a_run_s_folder_stands_for_the_adapter_in_it_which_is_called_after_it(place, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    halka.save(model, "a", "runs/support/adapter")
    folder = halka.AdapterFolder.open(place)
    assert (folder.name, folder.path) == ("support", Path("runs/support/adapter"))
    other = halka.adapt(model.base, model.tokenizer)
    halka.load(other, place)
    assert torch.equal(logits(other, "support"), logits(model, "a"))
    assert halka.AdapterStore("store").add(place).name == "support"


def test_an_open_folder_is_loaded_as_it_was_opened(model, tmp_path):
    folder = halka.AdapterFolder.open(halka.save(model, "a", tmp_path / "a"))
    assert halka.AdapterFolder.open(folder) is folder
    other = halka.adapt(model.base, model.tokenizer)
    halka.load(other, replace(folder, name="b"))
    assert torch.equal(logits(other, "b"), logits(model, "a"))


# ── its id ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_content_has_an_equal_id_wherever_it_lies_and_whatever_stands_beside_it(model, tmp_path):
    one = halka.save(model, "a", tmp_path / "one", task="sums", measurements={"exact": 1.0})
    (one / "README.md").write_text("mine")
    halka.save(model, "a", tmp_path / "run" / "adapter", training={"steps": 3})
    shutil.copytree(one, tmp_path / "copy")
    assert len({identity(tmp_path / name) for name in ("one", "run", "copy")}) == 1
    assert halka.AdapterStore(tmp_path / "store").add(one, "x").open().id == identity(one)


def test_other_weights_another_configuration_or_another_base_have_another_id(model, tmp_path):
    seen = {identity(halka.save(model, "a", tmp_path / "a"))}
    other = halka.adapt(tiny(seed=1, vocab_size=model.base.config.vocab_size), model.tokenizer)
    other.base.config._name_or_path = model.base.config._name_or_path
    other.add("a", halka.LoRA(rank=3), state=model.adapter("a").state_dict())
    seen.add(identity(halka.save(other, "a", tmp_path / "another base")))
    disturb(other, "a", seed=5)
    seen.add(identity(halka.save(other, "a", tmp_path / "other weights")))
    config = tmp_path / "a" / "adapter_config.json"
    (tmp_path / "a" / "halka.json").unlink()
    seen.add(identity(tmp_path / "a"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1.0}))
    seen.add(identity(tmp_path / "a"))
    assert len(seen) == 5


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_a_card_that_does_not_match_gives_no_id(name, model, tmp_path):
    folder = halka.save(model, "a", tmp_path / "a")
    (folder / name).write_bytes((folder / name).read_bytes() + b" ")
    with pytest.raises(halka.DamagedFolderError, match=f"{name} changed since halka.json was written"):
        identity(folder)


def test_after_loading_the_id_needs_no_file(model, tmp_path):
    """Loading hashes the files to compare them with the Card, and the id is of the same hashes."""
    folder = halka.AdapterFolder.open(halka.save(model, "a", tmp_path / "a"))
    expected = identity(folder.path)
    halka.load(halka.adapt(model.base, model.tokenizer), folder)
    shutil.rmtree(folder.path)
    assert folder.id == expected


def test_what_replaced_an_opened_folder_is_not_loaded_as_what_it_was(model, tmp_path):
    """Its values would be used with the older adapter's scale."""
    folder = halka.AdapterFolder.open(halka.save(model, "a", tmp_path / "a"))
    before = folder.id
    with model.own_weights():
        state = model.adapter("a").state_dict()
    other = halka.adapt(model.base, model.tokenizer)
    other.add("a", halka.LoRA(rank=3, alpha=48.0), state={key: tensor + 1 for key, tensor in state.items()})
    halka.save(other, "a", tmp_path / "a")
    for use in (folder.check, folder.verify, lambda: halka.load(model, folder, name="new")):
        with pytest.raises(halka.DamagedFolderError, match="a was replaced since it was opened: open it again"):
            use()
    assert [*model.adapters] == ["a"]
    assert folder.id == before != identity(tmp_path / "a")
    halka.save(model, "a", tmp_path / "a")
    assert folder.check() is None  # the same content as before


def test_without_a_card_configuration_and_tensors_are_those_that_are_there_now(model, tmp_path):
    halka.save(model, "a", tmp_path / "a")
    (tmp_path / "a" / "halka.json").unlink()
    folder = halka.AdapterFolder.open(tmp_path / "a")
    assert folder.id == identity(tmp_path / "a")
    other = halka.adapt(model.base, model.tokenizer)
    other.add("a", halka.LoRA(rank=3, alpha=48.0), state=model.adapter("a").state_dict())
    halka.save(other, "a", tmp_path / "a")
    (tmp_path / "a" / "halka.json").unlink()
    halka.load(other, folder, name="again")
    assert torch.equal(logits(other, "again"), logits(other, "a"))
    assert not torch.equal(logits(other, "again"), logits(model, "a"))


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_caller_can_tell_what_is_wrong_by_the_error(model, tmp_path):
    folder = halka.save(model, "a", tmp_path / "a")
    other = halka.adapt(tiny(vocab_size=model.base.config.vocab_size, seed=1), model.tokenizer)
    with pytest.raises(halka.WrongBaseError, match="was made for another base"):
        halka.load(other, folder)
    with pytest.raises(halka.UnknownAdapterError, match="no adapter 'b'"):
        halka.save(model, "b", tmp_path / "b")
    with pytest.raises(halka.UnknownAdapterError, match="holds no adapter 'b'"):
        halka.AdapterStore(tmp_path / "store").get("b")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    with pytest.raises(halka.DamagedFolderError):
        halka.load(model, folder, name="b")
    (folder / WEIGHTS).unlink()
    with pytest.raises(halka.DamagedFolderError, match="the adapter is incomplete"):
        halka.AdapterFolder.open(folder)
    with pytest.raises(
        halka.DamagedFolderError, match="not an adapter folder, but a folder of several: name one of them, a"
    ):
        halka.AdapterFolder.open(tmp_path)
    with pytest.raises(halka.DamagedFolderError, match=r"it is not an adapter folder$"):
        halka.AdapterFolder.open(Path(__file__).parent)


@pytest.mark.parametrize(
    ("named", "warns"),
    [("meta-llama/Llama-3-70B", True), ("HuggingFaceTB/SmolLM2-135M-Instruct", False), ("a-folder", False)],
)
def test_a_folder_without_a_card_that_names_another_base_comes_with_a_warning(named, warns, model, tmp_path, recwarn):
    folder = halka.save(model, "a", tmp_path / "a")
    (folder / "halka.json").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": named}))
    other = halka.adapt(model.base, model.tokenizer)
    name = model.base.config._name_or_path
    model.base.config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    try:
        halka.load(other, folder, name="theirs")
    finally:
        model.base.config._name_or_path = name
    about = [str(warning.message) for warning in recwarn if "as its base" in str(warning.message)]
    assert about == [f"{folder} names {named} as its base, and this is HuggingFaceTB/SmolLM2-135M-Instruct"] * warns


# ── halka.open ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_adapter_is_opened_with_its_base_from_its_folder_alone(model, tmp_path):
    halka.save(model, "a", tmp_path / "support" / "adapter")
    base, tokenizer, opened = halka.open(tmp_path / "support", dtype="float32")
    assert (base, tokenizer) == (opened.base, opened.tokenizer)
    assert [*opened.adapters] == ["support"]
    assert torch.equal(logits(opened, "support"), logits(model, "a"))


def test_the_base_may_be_elsewhere_than_the_folder_says(model, base, tmp_path):
    folder = halka.save(model, "a", tmp_path / "a")
    card = json.loads((folder / "halka.json").read_text())
    for name, hint in (
        ("/not/here", r"Pass another name or path as base=…"),
        ("", r"does not say which base.*base=…"),
    ):
        config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": name}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        (folder / "halka.json").write_text(json.dumps(card | {"base": card["base"] | {"name": name}, "files": {}}))
        with pytest.raises(halka.HalkaError, match=hint):
            halka.open(folder)
    opened = halka.open(folder, base=base, dtype="float32", name="mine").model
    assert torch.equal(logits(opened, "mine"), logits(model, "a"))


def test_a_known_base_is_opened_by_its_short_name(base, tmp_path, monkeypatch):
    monkeypatch.setenv("HALKA_CACHE", str(tmp_path))
    pulled = tmp_path / "bases" / "smollm2-135m"
    shutil.copytree(base, pulled)
    (pulled / "source.json").write_text("{}")
    model = halka.adapt(*halka.load_base("smollm2-135m", dtype="float32"))
    model.add("a", halka.LoRA(rank=2))
    folder = halka.save(model, "a", tmp_path / "a")
    assert halka.AdapterFolder.open(folder).base_name == "smollm2-135m"
    opened = halka.open(folder, dtype="float32").model
    assert torch.equal(logits(opened, "a"), logits(model, "a"))


def test_a_classifier_s_adapter_brings_its_kind_and_labels(tmp_path):
    there = classifier(kind="masked-lm")
    there.base.save_pretrained(tmp_path / "encoder")
    there.tokenizer.save_pretrained(tmp_path / "encoder")
    model = halka.adapt(*halka.load_base(tmp_path / "encoder", kind=CLASSES, labels=LABELS, dtype="float32"))
    model.add("tone", halka.LoRA(rank=2, targets=("attn.qv",)))
    halka.save(model, "tone", tmp_path / "tone")
    opened = halka.open(tmp_path / "tone").model
    assert type(opened.base) is type(model.base)
    assert opened.labels_of("tone") == tuple(LABELS)
