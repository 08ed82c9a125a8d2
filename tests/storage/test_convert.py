"""`halka adapters convert`: the same logits from another folder, whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import halka
from classifiers import CLASSES, LABELS, TAGS, classifier
from contract import disturb, ids
from halka.cli import app
from halka.storage.card import read_card
from halka.storage.formats import FORMATS
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A base, and adapters of it: one of ours, one whose weights are a pickle."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = chatml_tokenizer()
    tiny(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base, tokenizer = halka.load_base(folder / "base", dtype="float32")
    model = halka.adapt(base, tokenizer)
    model.add("a", halka.LoRA(rank=3, targets=("attn.qv", "mlp.down")))
    disturb(model, "a")
    halka.save(model, "a", folder / "a", task="sums", measurements={"exact": 1.0})
    halka.save(model, "a", folder / "pickled")
    torch.save(load_file(folder / "pickled" / WEIGHTS), folder / "pickled" / "adapter_model.bin")
    (folder / "pickled" / WEIGHTS).unlink()
    (folder / "pickled" / "halka.json").unlink()
    return folder


def convert(*arguments, code: int = 0):
    result = CliRunner().invoke(app, ["adapters", "convert", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def computed(folder: Path, base: Path) -> torch.Tensor:
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    halka.load(model, folder, name="a")
    with torch.no_grad(), model.use("a"):
        return model.base(ids()).logits


@pytest.mark.parametrize("to", FORMATS)
def test_what_computes_stays_the_same(to, made, tmp_path):
    told = json.loads(convert(made / "a", tmp_path / "b", "--to", to, "--base", made / "base", "--json").stdout)
    assert (told["from"], told["to"]) == ("peft", to)
    assert told["method"] == "lora"
    assert told["folder"] == str(tmp_path / "b")
    again = json.loads(
        convert(tmp_path / "b", tmp_path / "c", "--to", "peft", "--base", made / "base", "--json").stdout
    )
    assert again["parameters"] == told["parameters"]
    expected = computed(made / "a", made / "base")
    for folder in (tmp_path / "b", tmp_path / "c"):
        torch.testing.assert_close(computed(folder, made / "base"), expected, rtol=0, atol=1e-6)
    card = json.loads((tmp_path / "c" / "halka.json").read_text())
    assert card["task"] == "sums"
    assert card["measurements"] == {"exact": 1.0}


def test_the_card_names_the_quantisation_that_it_named_before(made, tmp_path):
    model = halka.adapt(*halka.load_base(made / "base", dtype="float32", quantize="int8"))
    model.add("a", halka.LoRA(rank=2))
    halka.save(model, "a", tmp_path / "a")
    assert "answers will differ" not in convert(tmp_path / "a", tmp_path / "b").stderr
    assert read_card(tmp_path / "b").base["quantize"] == "int8"


def test_the_base_is_the_one_that_the_folder_names(made, tmp_path):
    said = convert(made / "a", tmp_path / "b", "--to", "peft")
    assert str(made / "base") in said.stderr
    assert "lora of peft written to" in said.stdout
    config = json.loads((made / "a" / "adapter_config.json").read_text())
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    (tmp_path / "nameless" / WEIGHTS).write_bytes((made / "a" / WEIGHTS).read_bytes())
    assert "give --base NAME" in convert(tmp_path / "nameless", tmp_path / "c", "--to", "peft", code=2).stderr


def test_a_pickle_is_read_where_it_is_asked_for_alone(made, tmp_path):
    refused = convert(made / "pickled", tmp_path / "b", "--to", "peft", "--base", made / "base", code=2)
    assert "--allow-pickle" in refused.stderr
    assert not (tmp_path / "b").exists()
    convert(made / "pickled", tmp_path / "b", "--to", "peft", "--base", made / "base", "--allow-pickle")
    torch.testing.assert_close(computed(tmp_path / "b", made / "base"), computed(made / "a", made / "base"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    """A base for masked words, and adapters of it for three ends, without a Card, as peft leaves them."""
    folder = tmp_path_factory.mktemp("encoder")
    for kind in ("masked-lm", CLASSES, TAGS):
        if kind == "masked-lm":
            model = classifier(kind=kind)
            model.base.save_pretrained(folder / "base")
            model.tokenizer.save_pretrained(folder / "base")
        else:
            model = halka.adapt(*halka.load_base(folder / "base", kind=kind, labels=LABELS, dtype="float32"))
        model.add("a", halka.LoRA(rank=2, targets=("attn.qv",)))
        disturb(model, "a")
        halka.save(model, "a", folder / kind)
        (folder / kind / "halka.json").unlink()
    return folder


@pytest.mark.parametrize("kind", ["masked-lm", CLASSES, TAGS])
def test_without_a_card_the_base_is_loaded_as_pefts_task_or_its_architecture_says(kind, encoder, tmp_path):
    labels = [] if kind == "masked-lm" else list(LABELS)
    more = ["--labels", ",".join(labels)] if labels else []
    convert(encoder / kind, tmp_path / "b", "--base", encoder / "base", *more)
    card = read_card(tmp_path / "b")
    assert card is not None
    assert (card.kind, card.labels) == (kind, labels)
    before, after = (load_file(each / WEIGHTS) for each in (encoder / kind, tmp_path / "b"))
    assert before.keys() == after.keys()
    assert all(after[key].equal(tensor) for key, tensor in before.items())


def test_what_a_folder_does_not_say_is_asked_for_and_what_its_card_says_is_not(encoder, made, tmp_path):
    on = ("--base", encoder / "base")
    assert "--labels" in convert(encoder / CLASSES, tmp_path / "b", *on, code=2).stderr
    config = json.loads((encoder / CLASSES / "adapter_config.json").read_text())
    (tmp_path / "untold").mkdir()
    (tmp_path / "untold" / "adapter_config.json").write_text(json.dumps(config | {"task_type": None}))
    (tmp_path / "untold" / WEIGHTS).write_bytes((encoder / CLASSES / WEIGHTS).read_bytes())
    convert(tmp_path / "untold", tmp_path / "b", *on, "--kind", CLASSES, "--labels", "good, bad, meh")
    card = read_card(tmp_path / "b")
    assert card is not None
    assert (card.kind, card.labels) == (CLASSES, list(LABELS))
    said = convert(made / "a", tmp_path / "c", "--base", made / "base", "--kind", "causal-lm", code=2).stderr
    assert "are for a folder without a Card, and this one has a Card of a causal-lm" in said


@pytest.mark.parametrize(
    ("method", "note"),
    [
        (halka.Prefix(length=2), "PeftModel.generate of peft 0.21.2 ignores prefixes"),
        (halka.Prompt(length=2), "PeftModel.generate of peft 0.21.2 repeats prompts"),
        (halka.BitFit(), "peft has no form for this adapter: only Halka reads the folder"),
        (halka.LoRA(rank=2), ""),
    ],
)
def test_writing_for_peft_says_what_peft_makes_of_it(method, note, made, tmp_path):
    model = halka.adapt(*halka.load_base(made / "base", dtype="float32"))
    model.add("p", method)
    halka.save(model, "p", tmp_path / "p")
    notes = [line for line in convert(tmp_path / "p", tmp_path / "q").stderr.splitlines() if line.startswith("note: ")]
    assert [line.removeprefix("note: ").startswith(note) for line in notes] == ([True] if note else [])


def test_what_cannot_be_written_leaves_nothing(made, tmp_path):
    assert (
        "'gif' is not one of 'peft', 'adapterhub'" in convert(made / "a", tmp_path / "b", "--to", "gif", code=2).stderr
    )
    assert "is the adapter's own folder" in convert(made / "a", made / "a", code=2).stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    said = convert(made / "a", tmp_path / "full", "--to", "peft", "--base", made / "base", code=2).stderr
    assert "holds thesis.txt: name a new folder" in said
    assert [each.name for each in tmp_path.iterdir()] == ["full"]
