"""Keys: random, hashed, expiring, revoked; the file is private and whole, whatever happens."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from halka.server.guards.keys import ROLES, Keys, Limits
from halka.util.errors import DamagedFolderError, HalkaError

LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def keys(tmp_path) -> Keys:
    return Keys(tmp_path / "data" / "keys.json")


def test_a_key_is_found_by_its_text_alone(keys):
    text, key = keys.add("main", "user", note="laptop")
    assert keys.find(text.encode()) == key
    for other in ("", key.id, key.hash, text[:-1], text + " ", text.upper(), text.removeprefix("halka_")):
        assert keys.find(other.encode()) is None
    assert keys.find(b"\xff\x00") is None


def test_a_text_has_256_random_bits_and_is_nowhere_in_the_file(keys):
    texts = [keys.add("main", "user")[0] for _ in range(3)]
    assert len({*texts}) == 3
    assert all(len(text.removeprefix("halka_")) == 43 for text in texts)
    content = keys.path.read_text()
    assert not any(text in content or text[6:] in content for text in texts)


def test_only_the_owner_reads_the_file(keys):
    keys.add("main", "user")
    keys.add("main", "user")
    assert stat.S_IMODE(keys.path.stat().st_mode) == 0o600


def test_a_begin_of_the_hash_does_not_let_in(keys):
    """Whoever has a text whose id is another key's is still no holder of that key."""
    text, key = keys.add("main", "admin")
    saved = json.loads(keys.path.read_text())
    saved[0]["hash"] = key.hash[:16] + "0" * 48
    keys.path.write_text(json.dumps(saved))
    assert keys.find(text.encode()) is None
    assert keys.all().keys() == {key.id}


def test_an_expired_key_is_no_key(keys):
    text, key = keys.add("main", "user", expires=LATER)
    assert keys.find(text.encode()) == key
    saved = json.loads(keys.path.read_text())
    saved[0]["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    keys.path.write_text(json.dumps(saved))
    assert keys.find(text.encode()) is None
    assert not keys.valid(key)
    with pytest.raises(HalkaError, match="would have expired at 2000-01-01 00:00 UTC: choose a later time"):
        keys.add("main", "user", expires=datetime(2000, 1, 1, tzinfo=UTC))
    with pytest.raises(HalkaError, match=r"would have expired at .*1-01-01 00:00 UTC\+14:00"):
        keys.add("main", "user", expires=datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))))


def test_another_process_changes_are_seen_at_the_next_look(keys):
    other = Keys(keys.path)
    assert not keys.required
    text, key = other.add("main", "user")
    assert keys.required
    assert keys.find(text.encode()) == key
    assert other.revoke(key.id) == key
    assert keys.find(text.encode()) is None
    with pytest.raises(HalkaError, match=f"there is no key '{key.id}': `halka keys list` shows the ids"):
        other.revoke(key.id)


def test_once_keys_are_required_they_stay_so(keys):
    """Neither the last key's end nor the file's lets in everybody."""
    _, key = keys.add("main", "user")
    keys.revoke(key.id)
    assert keys.required
    assert Keys(keys.path).required
    keys.path.unlink()
    assert keys.required
    assert Keys(keys.path).required, "also of a server that begins when the file is lost"
    assert keys.find(b"") is None


def test_what_adds_no_key_requires_none(keys):
    with pytest.raises(HalkaError, match="there is no key 'nothing'"):
        keys.revoke("nothing")
    assert not Keys(keys.path).required


@pytest.mark.parametrize("content", ["", "{", "[{}]", '{"a": 1}', "null", "[" * 5000, '[{"id": "a", "role": "root"}]'])
def test_a_damaged_file_lets_nobody_in(keys, content):
    text, _ = keys.add("main", "user")
    keys.path.write_text(content)
    for look in (lambda: keys.find(text.encode()), lambda: keys.add("main", "user"), keys.all):
        with pytest.raises(DamagedFolderError, match=r"keys.json does not hold keys .*: restore it from a backup"):
            look()
    assert keys.path.read_text() == content


def test_what_this_version_does_not_know_is_not_passed_over(keys):
    """A field of a later version may be a restriction."""
    text, _ = keys.add("main", "user")
    saved = json.loads(keys.path.read_text())
    saved[0]["addresses"] = ["10.0.0.1"]
    keys.path.write_text(json.dumps(saved))
    with pytest.raises(DamagedFolderError):
        keys.find(text.encode())


@pytest.mark.parametrize("tenant", ["", "..", "a/b", "../main", "Main", ".hidden", "a b", "é", "x" * 101, "con\n"])
def test_a_tenant_has_a_name_for_a_folder(keys, tenant):
    with pytest.raises(HalkaError, match="cannot name a tenant"):
        keys.add(tenant, "user")
    assert not keys.path.exists()


@pytest.mark.parametrize("role", ROLES)
def test_a_tenant_is_not_called_as_a_role_is(keys, role):
    """Who may read a document is said by tenants' and roles' names alike."""
    with pytest.raises(HalkaError, match=f"'{role}' cannot name a tenant: it is a role"):
        keys.add(role, "user")
    assert not keys.required


def test_limits_are_kept(keys):
    limits = Limits(requests=10, tokens=10**12, concurrency=2, storage=10**13)
    text, _ = keys.add("acme", "manager", LATER, limits, "CI")
    key = Keys(keys.path).find(text.encode())
    assert (key.tenant, key.role, key.expires, key.limits, key.note) == ("acme", "manager", LATER, limits, "CI")


@pytest.mark.slow
def test_a_process_that_is_killed_while_it_adds_keys_leaves_them_whole(keys):
    """Every key that was printed is there, and works."""
    code = (
        "import sys; from pathlib import Path; from halka.server.guards.keys import Keys\n"
        "keys = Keys(Path(sys.argv[1]))\n"
        "while True: print(keys.add('main', 'user')[0], flush=True)"
    )
    printed = []
    for wanted in (1, 3, 5):
        adding = subprocess.Popen([sys.executable, "-c", code, keys.path], stdout=subprocess.PIPE, text=True)
        printed += [adding.stdout.readline().strip() for _ in range(wanted)]
        adding.send_signal(signal.SIGKILL)
        printed += [line.strip() for line in adding.communicate()[0].splitlines(keepends=True) if line.endswith("\n")]
    assert all(keys.find(text.encode()) is not None for text in printed)
    text, _ = keys.add("main", "user")
    assert keys.find(text.encode()) is not None
