"""docs/serve.md says what there is: roles, settings, metrics, and each setting of the systemd unit."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guarded_for_tests import Guarded
from halka.server.guards.keys import ROLES
from halka.server.settings import ServerSettings
from halka.util.settings import settings_of

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
