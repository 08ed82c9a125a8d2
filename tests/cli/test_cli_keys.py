"""`halka keys`: keys are added, listed without their texts, changed and revoked."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from commands import failure, halka, parsed
from halka.server.guards.keys import Keys, Limits


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(data: str = "halka-server") -> Keys:
    return Keys(Path(data, "keys.json"))


def test_a_key_is_printed_once(folder):
    added = halka("keys add --note laptop")
    text = added.stdout.strip()
    key = keys().find(text.encode())
    assert (key.tenant, key.role, key.note, key.expires) == ("main", "user", "laptop", None)
    assert added.stderr == f"{key.id}: user of main; the key is shown this once:\n"
    listed = halka("keys list").stdout
    assert key.id in listed
    assert "1 key in halka-server/keys.json" in listed
    assert text not in listed
    assert "None was revoked" in failure(f"keys revoke {key.id} abc")
    assert keys().find(text.encode()) is not None
    assert halka(f"keys revoke {key.id}").stdout == f"{key.id}: revoked\n"
    assert keys().find(text.encode()) is None
    assert parsed("keys list") == []


def test_all_that_a_key_may_have():
    added = parsed(
        "keys add --tenant acme --role manager --expires 90d --requests 60 --tokens 1000 --concurrency 4 --storage 2GB"
    )
    key = keys().find(added.pop("key").encode())
    assert added == parsed("keys list")[0]
    assert added["limits"] == {"requests": 60, "tokens": 1000, "concurrency": 4, "storage": 2 * 10**9}
    assert key.expires - datetime.now(UTC) > timedelta(days=89)
    assert not added["expired"]
    assert "requests 60, tokens 1,000, concurrency 4, storage 2,000,000,000" in halka("keys list").stdout


def test_a_key_is_changed_and_keeps_its_text():
    text = halka("keys add --role manager --requests 60 --storage 2GB --note laptop").stdout.strip()
    before = keys().find(text.encode())
    shown = halka(f"keys change {before.id} --role user --requests none --tokens 1000 --storage 3.5GB").stdout
    assert shown == f"{before.id}: user of main; tokens 1,000, storage 3,500,000,000\n"
    key = keys().find(text.encode())
    assert (key.role, key.note, key.limits) == ("user", "laptop", Limits(tokens=1000, storage=3_500_000_000))
    assert parsed(f"keys change {before.id} --note night --concurrency 4")["note"] == "night"
    assert keys().find(text.encode()).limits == Limits(None, 1000, 4, 3_500_000_000)
    shown = halka(f"keys change {before.id} --tokens none --concurrency none --storage none").stdout
    assert "the server's limits" in shown


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ("", "there is nothing to change: give --role, --note or a limit"),
        ("--requests 0", "--requests: '0' is no limit: give a number from 1 on, or none for the server's"),
        ("--tokens 1152921504606846976", "--tokens: "),
        ("--storage much", "--storage: "),
        ("--storage 0", "--storage: "),
        ("--role root", "Invalid value for '--role'"),
        ("--role monitor", "a monitor's key is of tenant main"),
    ],
)
def test_a_key_does_not_become_what_is_none(flags, shown):
    parsed("keys add --tenant acme")
    before = keys().all()
    assert failure(f"keys change {next(iter(before))} {flags}").startswith(shown)
    assert keys().all() == before


def test_the_folder_is_the_servers(monkeypatch):
    monkeypatch.setenv("HALKA_SERVE_DATA", "elsewhere")
    halka("keys add")
    assert len(keys("elsewhere").all()) == 1
    halka("keys add --data here")
    assert len(keys("here").all()) == 1


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("keys add --expires tomorrow", "--expires: 'tomorrow' is no date: write 2027-01-31, or 12h, 90d, 8w from now"),
        ("keys add --expires 9999999w", "--expires: '9999999w' is no date"),
        ("keys add --expires 2020-01-01", "the key would have expired at 2020-01-01 00:00 UTC: choose a later time"),
        ("keys add --tenant ../main", "'../main' cannot name a tenant"),
        ("keys add --storage much", "--storage: "),
        ("keys add --role root", "Invalid value for '--role'"),
        ("keys add --requests 0", "Invalid value for '--requests'"),
        ("keys add --storage 0", "--storage: "),
        ("keys change abc --role user", "there is no key 'abc': `halka keys list` shows the ids"),
        ("keys revoke abc", "there is no key 'abc': `halka keys list` shows the ids"),
        ("keys list --data file", "--data: file is a file: name the server's folder"),
    ],
)
def test_what_is_no_key_is_named(folder, command, shown):
    (folder / "file").touch()
    assert failure(command).startswith(shown)
    assert not (folder / "halka-server" / "keys.json").exists()


def test_keys_need_neither_fastapi_nor_the_engine(folder):
    code = "import sys; from halka.cli import app; app(['keys', 'list'], standalone_mode=False)"
    code = f"import atexit, sys; atexit.register(lambda: print({{'torch', 'fastapi'}} & {{*sys.modules}})); {code}"
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(source)})
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_a_damaged_file_is_named(folder):
    (folder / "halka-server").mkdir()
    (folder / "halka-server" / "keys.json").write_text("{")
    for command in ("list", "add", "revoke abc"):
        assert failure(f"keys {command}").startswith("halka-server/keys.json does not hold keys")
