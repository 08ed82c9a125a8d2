"""docs/serve.md says what there is: roles, settings, metrics, each setting of the systemd unit; its requests work."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

import halka as library
from commands import halka
from guarded_for_tests import Guarded
from halka.rag.passages import Passage
from halka.server.answers.retrieval import Grounding
from halka.server.guards.keys import ROLES
from halka.server.settings import ServerSettings
from halka.util.settings import settings_of
from serving_for_tests import Running, make_store

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
(UNIT,) = re.findall(r"```ini\n(.*?)```", PAGE, flags=re.DOTALL)


def rows(title: str) -> list[str]:
    """The first cells of the table below a heading."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| ")][2:]


def test_every_setting_of_the_unit_has_a_note():
    explained = {name for row in rows("As a service") for name in re.findall(r"`(\w+)`", row)}
    settings = set(re.findall(r"^(\w+)=", UNIT, flags=re.MULTILINE)) - {"Description", "WantedBy"}
    assert settings == explained


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_takes_the_unit(tmp_path):
    unit = tmp_path / "halka.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT, flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_roles():
    assert [row.strip("`") for row in rows("Keys")] == [*ROLES]


def test_the_settings_and_their_defaults():
    settings = settings_of(ServerSettings)
    for name, default in re.findall(r"`(\w+)`: ([\w.]+)", PAGE):
        shown = settings[name].default
        assert default == ("none" if shown is None else f"{shown:g}"), name


def test_the_metrics(tmp_path):
    guarded = Guarded(tmp_path)
    families = {metric.name for metric in guarded.guards.metrics.registry.collect()}
    documented = {name.removesuffix("_total") for name in re.findall(r"`((?:halka|vllm:)_?\w+)`", PAGE)}
    assert families == {name for name in documented if name.startswith(("halka_", "vllm:"))}


# ── its blocks ──────────────────────────────────────────────────────────────────────────────────────────────────────


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def lines(program: str) -> list[str]:
    """The command lines of all blocks that begin with this program."""
    shells = "\n".join(blocks("sh") + blocks("console")).replace("\\\n", " ")
    return [line for line in shells.splitlines() if line.startswith(f"{program} ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_requests(base, tmp_path):
    """Every curl of the page, in its order, and its chat about a collection; a model that is not there is its error."""
    store = make_store(tmp_path / "store", base, {"support": library.LoRA(rank=2)})
    shutil.copytree(store / "support" / "1", tmp_path / "adapter")
    (tmp_path / "parcels.md").write_text("Parcels are sent on Monday.")
    (tmp_path / "train.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n' * 20)
    error, grounded = (json.loads(block) for block in blocks("json") if '"file_citation"' not in block)
    with Running(base, store, tmp_path / "data") as running:
        for line in lines("curl"):
            command = re.sub(r"http://(127\.0\.0\.1|localhost):8000", running.url, line)
            done = subprocess.run(f"{command} -s", shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert {"id", "data"} & {*json.loads(done.stdout)}, (line, done)
        answer = running.client.post("/v1/chat/completions", json=grounded).json()
        assert answer["halka"]["collection"] == "faq"
        refused = running.client.post("/v1/chat/completions", json={**grounded, "model": "nobody"})
        assert refused.json() == error


def test_the_citation():
    (citation,) = (json.loads(block) for block in blocks("json") if '"file_citation"' in block)
    passages = [Passage("parcels.md", 0, "Parcels are sent on Monday.", 0, 27)]
    text = "Parcels are sent then.   [1]"
    assert Grounding("faq", [], passages, {"parcels.md": "parcels.md"}).chat_annotations(text) == [citation]


def test_the_commands(tmp_path):
    """Keys are added, listed, changed and revoked; what `halka serve` is started with are settings."""
    for line in lines("halka"):
        command = shlex.split(line, comments=True)[1:]
        if command[0] == "serve":
            assert {word[2:] for word in command if word.startswith("--")} <= {*settings_of(ServerSettings)}
        elif command[1] in ("change", "revoke"):
            (id, *_) = (row.split()[0] for row in halka("keys list", tmp_path).stdout.splitlines() if "laptop" in row)
            halka(shlex.join([*command[:2], id, *command[3:]]), tmp_path)
        else:
            halka(shlex.join(command), tmp_path)
