"""`halka base template`: a base with another chat template, which shares its weights."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

import halka
from commands import ROOT, TRAIN, failure, parsed
from commands import halka as run

(TURNS,) = re.findall(r"```jinja\n(.*?)```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def turns(here) -> Path:
    """A file with a template, in a folder with a base."""
    (here / "turns.jinja").write_text(TURNS)
    return here


def test_it_is_the_same_base_with_another_template(turns):
    result = parsed("base template base bases/turns --file turns.jinja")
    assert result == {"base": "base", "path": "bases/turns"}
    weights = turns / "bases" / "turns" / "model.safetensors"
    assert weights.is_symlink()
    assert os.path.isabs(os.readlink(weights))
    (before, first), (after, tokenizer) = (halka.load_base(name, dtype="float32") for name in ("base", "bases/turns"))
    assert tokenizer.chat_template == TURNS
    assert first.chat_template != TURNS
    assert tokenizer.get_vocab() == first.get_vocab()
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    end = tokenizer.eos_token
    assert tokenizer.apply_chat_template(chat, tokenize=False) == f"user:\nWho?{end}\nassistant:\nAda.{end}\n"
    assert all(torch.equal(*pair) for pair in zip(before.parameters(), after.parameters(), strict=True))


def test_an_adapter_of_it_asks_for_its_template(turns):
    run("base template base turns --file turns.jinja")
    run(f"train {TRAIN.replace('--base base', '--base turns')} --steps 2 -o mine")
    assert "another chat template" in failure("generate --base base --adapter mine Who?")
    assert run("generate --base turns --adapter mine Who? --max-new-tokens 2").stdout


def test_values_are_set_in_front_of_the_template(turns):
    own = "\n  {% if calm is defined and calm is false %}{{ mood }}{{ number }}{% endif %}\n" + TURNS
    (turns / "moods.jinja").write_text(own)
    run("base template base calm --file moods.jinja")
    result = run("""base template calm moody --set calm=False --set mood='"{%␣%}é😀 --set number=-3""")
    assert "moody is calm with this chat template" in result.stdout
    texts = []
    for name in ("calm", "moody"):
        tokenizer = halka.load_base(name)[1]
        turn = [{"role": "user", "content": "Who?"}]
        texts.append(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        assert str(tokenizer.chat_template).endswith(own)
    assert texts[1] == texts[0].replace("\n", """\n'"{% %}é😀-3""", 1)
    message = failure("base template moody twice --set mood=calm")
    assert "--set: 'mood' is nothing that the chat template takes: it does not read it, or sets it itself" in message


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("7", 7), ("-7", -7), ("007", "007"), ("", ""), ("9" * 30, "9" * 30)],
)
def test_values_are_booleans_whole_numbers_or_texts(turns, text, value):
    (turns / "turns.jinja").write_text("{{ value | tojson }}" + TURNS)
    run(f"base template base valued --file turns.jinja --set value={text}")
    chat = [{"role": "user", "content": "Who?"}]
    written = halka.load_base("valued")[1].apply_chat_template(chat, tokenize=False)
    assert str(written).startswith(json.dumps(value) + "user:")


def test_a_template_in_the_tokenizers_settings_is_replaced(turns):
    (turns / "older").mkdir()
    for file in (turns / "base").iterdir():
        (turns / "older" / file.name).symlink_to(file.resolve())
    (turns / "older" / "chat_template.jinja").unlink()
    (turns / "older" / "tokenizer_config.json").unlink()
    settings = json.loads((turns / "base" / "tokenizer_config.json").read_text()) | {"chat_template": "{{ messages }}"}
    (turns / "older" / "tokenizer_config.json").write_text(json.dumps(settings))
    (turns / "older" / "pytorch_model.bin").write_bytes(b"pickle")
    run("base template older newer --file turns.jinja")
    assert halka.load_base("newer")[1].chat_template == TURNS
    assert not (turns / "newer" / "pytorch_model.bin").exists()
    assert "chat_template" not in json.loads((turns / "newer" / "tokenizer_config.json").read_text())


def test_weights_of_any_name_are_linked_and_named_where_they_are_lost(turns):
    (turns / "sharded").mkdir()
    for file in (turns / "base").iterdir():
        (turns / "sharded" / file.name.replace("model.safetensors", "weights.safetensors")).write_bytes(
            file.read_bytes()
        )
    with (turns / "sharded" / "weights.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    names = dict.fromkeys(header.keys() - {"__metadata__"}, "weights.safetensors")
    (turns / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    run("base template sharded newer --file turns.jinja")
    assert halka.load_base("newer")[1].chat_template == TURNS
    (turns / "sharded" / "weights.safetensors").unlink()
    with pytest.raises(
        halka.HalkaError, match=r"weights\.safetensors is a link to .*sharded/weights.*, where nothing is"
    ):
        halka.load_base("newer")


def test_a_base_that_is_saved_there_leaves_the_first_ones_weights(turns):
    run("base template base own --file turns.jinja")
    before = (turns / "base" / "model.safetensors").read_bytes()
    base, _ = halka.load_base("own", dtype="float32")
    with torch.no_grad():
        next(base.parameters()).add_(1)
    base.save_pretrained("own")
    assert (turns / "own" / "model.safetensors").read_bytes() != before
    assert (turns / "base" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("template", "arguments", "why"),
    [
        (TURNS, "", r"this would be the base's own template: give another by --file"),
        (TURNS, "--file none.jinja", r"none\.jinja"),
        (TURNS, "--file turns.jinja --set word=x", r"--set: 'word' is nothing that the chat template takes"),
        (TURNS, "--file turns.jinja --set eos_token=Z", r"--set: 'eos_token' is nothing that the chat template takes"),
        (TURNS, "--file turns.jinja --set word", r"--set: 'word' is not NAME=VALUE"),
        (TURNS, "--file turns.jinja --set a-b=1", r"--set: 'a-b=1' is not NAME=VALUE"),
        ("{% for %}", "--file turns.jinja", r"the chat template cannot be read"),
        ("{{ messages[0].content }}", "--file turns.jinja", r"drops or rewrites a part of the answer in message 2"),
    ],
)
def test_what_cannot_be_a_template_is_refused(turns, template, arguments, why):
    (turns / "turns.jinja").write_text(template)
    message = failure(f"base template base mine {arguments}")
    assert re.search(why, message), message
    assert not (turns / "mine").exists()


def test_a_folder_that_exists_is_left_as_it_is(turns):
    assert "run exists already" in failure("base template base run --file turns.jinja")
    (turns / "latin.jinja").write_bytes(b"\xe9")
    assert "--file: latin.jinja is not UTF-8 text" in failure("base template base mine --file latin.jinja")
    (turns / "marked.jinja").write_text(TURNS, encoding="utf-8-sig")
    run("base template base marked --file marked.jinja")
    assert halka.load_base("marked")[1].chat_template == TURNS


def test_answers_that_nothing_closes_are_warned_of(turns):
    (turns / "turns.jinja").write_text(TURNS.replace("{{ eos_token }}", ""))
    result = run("base template base mine --file turns.jinja")
    assert "will not learn to stop (end them with {{ eos_token }})" in result.stderr
