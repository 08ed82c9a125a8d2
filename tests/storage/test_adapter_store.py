"""A store of adapters: names, versions, tags, many processes at once, and crashes that leave nothing half done."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import halka
import halka.storage.adapter_store
from contract import adapted, disturb, ids
from halka.core import AdaptedModel
from halka.storage.adapter_store import AdapterStore, name_and_version
from halka.storage.card import read_card
from halka.util.errors import DamagedFolderError, HalkaError, UnknownAdapterError
from halka.util.files import is_portable_name
from mac_for_tests import needs_both_cases
from tiny import tiny


def logits(model: AdaptedModel, name: str) -> torch.Tensor:
    with torch.no_grad(), model.use(name):
        return model.base(ids()).logits


@pytest.fixture
def model() -> AdaptedModel:
    model = adapted(halka.LoRA(rank=4))
    model.add("b", halka.IA3())
    disturb(model, "b")
    return model


@pytest.fixture
def store(tmp_path) -> AdapterStore:
    return AdapterStore(tmp_path / "store")


def hidden(store: AdapterStore) -> list[Path]:
    return [path for path in store.folder.rglob(".*") if path.name != ".locks" and ".locks" not in path.parts]


@pytest.mark.parametrize(
    ("text", "parts"),
    [("a", ("a", None)), ("a.b-1@12", ("a.b-1", 12))]
    + [
        (text, (text, None))
        for text in ("a@", "@1", "a@0", "a@01", "a@-1", "a@1.0", "a@+1", "a@১", "a@1\n", f"a@{'9' * 5000}")
    ],
)
def test_a_name_may_say_its_version(text, parts):
    assert name_and_version(text) == parts


# ── names and versions ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_saved_comes_back(store, model):
    stored = store.save(model, "a", task="support", measurements={"exact_match": 0.5})
    assert (stored.name, stored.version, stored.task, stored.method) == ("a", 1, "support", "lora")
    other = halka.adapt(tiny())
    store.load(other, "a")
    assert torch.equal(logits(other, "a"), logits(model, "a"))


def test_a_name_has_versions_of_which_the_newest_counts(store, model):
    first = logits(model, "a")
    store.save(model, "a")
    disturb(model, "a", seed=9)
    assert store.save(model, "a").version == 2
    assert store.versions("a") == [1, 2]
    found = []
    for name, version in (("a", 1), ("a", None), ("a@1", None), ("a@2", None)):
        other = halka.adapt(tiny())
        store.load(other, name, version)
        found.append(logits(other, name))
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], logits(model, "a"))
    assert not torch.equal(found[0], found[1])
    assert torch.equal(found[2], found[0])
    assert torch.equal(found[3], found[1])


def test_a_removed_version_s_number_is_not_used_again(store, model):
    """Who has written down `a@2` means what was saved then."""
    for _ in range(3):
        folder = store.save(model, "a").folder
    store.remove("a", 3)
    store.remove("a", 2)
    assert store.get("a").version == 1
    assert store.save(model, "a").version == 4
    store.remove("a", 4)
    assert store.add(store.folder / "a" / "1", "a").version == 5
    assert store.versions("a") == [1, 5]
    assert hidden(store) == []
    (store.folder / "a" / "last_version.json").write_text("x")
    with pytest.raises(DamagedFolderError, match="write the highest number there was into it"):
        store.save(model, "a")
    store.remove("a")
    assert not (store.folder / "a").exists()
    assert store.save(model, "a").folder == folder.with_name("1")


@pytest.mark.parametrize("name", ["007", "0", "٣", "9" * 12])
def test_a_folder_whose_name_is_no_version_is_none(store, model, name):
    store.save(model, "a")
    (store.folder / "a" / name).mkdir()
    assert store.versions("a") == [1]
    assert [stored.version for stored in store.list()] == [1]
    assert store.save(model, "a").version == 2


def test_a_base_folder_is_no_store(store, model, tmp_path):
    stored, base = store.save(model, "a"), AdapterStore(tmp_path / "base")
    base.folder.mkdir()
    (base.folder / "config.json").write_text("{}")
    for write in (lambda: base.add(stored.folder), lambda: base.save(model, "a")):
        with pytest.raises(HalkaError, match=r"base holds a base model .*: name another folder for the store"):
            write()
    assert [path.name for path in base.folder.iterdir()] == ["config.json"]


def test_list_is_by_task_tag_and_method(store, model):
    store.save(model, "a", task="support")
    store.save(model, "a", stored_as="c", task="legal")
    store.save(model, "b", task="support")
    assert store.tag("a", ["live", "eu"]) == ("eu", "live")
    assert store.tag("a", ["eu"], remove=True) == ("live",)
    assert store.set_tags("a", ["us", "us"]) == ("us",)
    assert store.set_tags("a", ["live"]) == ("live",)
    for change in (store.tag, store.set_tags):
        with pytest.raises(HalkaError, match="a tag for a is empty"):
            change("a", ["us", " "])
    assert [each.name for each in store.list()] == ["a", "b", "c"]
    assert [each.name for each in store.list(task="support")] == ["a", "b"]
    assert [each.name for each in store.list(tag="live")] == ["a"]
    assert [each.name for each in store.list(task="support", method="ia3")] == ["b"]
    store.save(model, "a")
    assert store.get("a").tags == ("live",)


def test_removing_a_name_leaves_nothing(store, model):
    store.save(model, "a")
    store.save(model, "a")
    store.tag("a", ["x"])
    store.remove("a")
    assert store.names() == []
    assert not (store.folder / "a").exists()
    assert hidden(store) == []


def test_a_folder_of_another_tool_is_added(store, model, tmp_path):
    store.save(model, "a")
    folder = halka.save(model, "b", tmp_path / "peft")
    (folder / "halka.json").unlink()
    added = store.add(folder, "theirs")
    assert (added.card, added.task) == (None, "")
    other = halka.adapt(tiny())
    store.load(other, "theirs")
    assert torch.equal(logits(other, "theirs"), logits(model, "b"))


def test_only_the_adapters_own_files_are_added(store, model, tmp_path):
    """A checkpoint's optimiser is a pickle, and a link may lead anywhere; the hub's cache is of links alone."""
    folder = halka.save(model, "a", tmp_path / "run")
    (folder / "README.md").write_text("mine")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "checkpoint-5").mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    cached = tmp_path / "cached"
    cached.mkdir()
    for file in folder.iterdir():
        (cached / file.name).symlink_to(file)
    for source in (folder, cached):
        added = store.add(source).folder
        names = {"README.md", "adapter_config.json", "adapter_model.safetensors", "halka.json"}
        assert {path.name for path in added.iterdir()} == names
        assert not any(path.is_symlink() for path in added.iterdir())
        assert added.joinpath("halka.json").read_bytes() == (folder / "halka.json").read_bytes()


# ── what is refused ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", ".hidden", "a\\b", "a b", "ü", "a" * 101, "a.", "store.json", 3]
)
def test_a_name_never_becomes_a_path(store, model, name, tmp_path):
    for call in (
        lambda: store.save(model, "a", stored_as=name),
        lambda: store.get(name),
        lambda: store.tag(name, ["x"]),
        lambda: store.remove(name),
        lambda: store.add(tmp_path, name),
    ):
        with pytest.raises(ValueError, match="cannot be a name in a store"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_of_another_base_is_refused(store, model, tmp_path):
    store.save(model, "a")
    other = halka.adapt(tiny(seed=1))
    other.add("o", halka.LoRA(rank=4))
    with pytest.raises(ValueError, match="are of another base"):
        store.save(other, "o")
    with pytest.raises(ValueError, match="was made for another base"):
        store.add(halka.save(other, "o", tmp_path / "o"), "o")
    with pytest.raises(ValueError, match="was made for another base"):
        store.load(other, "a")
    copied = AdapterStore(tmp_path / "copied")  # whose first adapter was not saved there, but added
    copied.add(tmp_path / "o", "o")
    with pytest.raises(ValueError, match="was made for another base than the adapters in"):
        copied.add(store.get("a").folder, "o")
    assert copied.versions("o") == [1]
    assert store.names() == ["a"]
    assert [name in store for name in ("a", "o", "../a", ".locks", 1)] == [True, False, False, False, False]


@pytest.mark.parametrize("fingerprint", [{"vocab_size"}, {"weights"}])
def test_a_part_of_a_fingerprint_is_compared_and_completed(store, model, tmp_path, fingerprint):
    """A Card of another tool may have no more; the adapters after it have all of it."""
    folder = halka.save(model, "a", tmp_path / "part")
    card = json.loads((folder / "halka.json").read_text())
    whole = card["base"]["fingerprint"]
    card["base"]["fingerprint"] = {key: value for key, value in whole.items() if key in fingerprint}
    assert card["base"]["fingerprint"].keys() == fingerprint
    (folder / "halka.json").write_text(json.dumps(card))
    store.add(folder, "part")
    assert store.base() == card["base"]["fingerprint"]
    store.save(model, "a")
    assert store.base() == whole
    store.add(folder, "part")
    assert store.base() == whole
    (key,) = fingerprint
    card["base"]["fingerprint"][key] = "other"
    (folder / "halka.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="was made for another base than the adapters in"):
        store.add(folder, "part")


def test_a_fingerprint_that_is_none_is_not_recorded(store, model, tmp_path):
    folder = halka.save(model, "a", tmp_path / "odd")
    card = json.loads((folder / "halka.json").read_text())
    card["base"]["fingerprint"] = "odd"
    (folder / "halka.json").write_text(json.dumps(card))
    store.add(folder, "odd")
    assert store.base() is None


@pytest.mark.parametrize(("levels", "refused"), [(62, False), (63, True), (700, True), (20_000, True)])
def test_a_cards_depth_is_bounded(model, tmp_path, levels, refused):
    """`training` is its second level, and who reads it need not count the others."""
    folder = halka.save(model, "a", tmp_path / "deep")
    card = json.loads((folder / "halka.json").read_text())
    text = json.dumps(card | {"training": {"a": "deep"}}).replace('"deep"', "[" * levels + "]" * levels)
    (folder / "halka.json").write_text(text)
    if refused:
        with pytest.raises(DamagedFolderError, match=r"nested deeper than 64 levels|recursion"):
            read_card(folder)
    else:
        assert read_card(folder) is not None


def test_a_new_name_differs_from_others_by_more_than_capitals(store, model):
    """A Mac takes them for one: a store with both could not be copied there."""
    folder = store.save(model, "a", stored_as="support").folder
    for write in (lambda: store.save(model, "b", stored_as="Support"), lambda: store.add(folder, "Support")):
        with pytest.raises(ValueError, match=r"'Support' differs from 'support' in capitals alone.*use 'support', or"):
            write()
    assert store.names() == ["support"]
    assert "Support" not in [path.name for path in store.folder.iterdir()]
    needs_both_cases(store.folder.parent)
    (store.folder / "support").rename(store.folder / "SUPPORT")
    shutil.copytree(store.folder / "SUPPORT", store.folder / "support")  # as older versions let in
    assert [store.add(folder, name).version for name in ("support", "SUPPORT")] == [2, 2]


def test_a_name_is_not_found_by_another_spelling(store, model, monkeypatch):
    store.save(model, "a", stored_as="support")
    spellings = ("Support", "sUPPORT")  # which a Mac finds, and does not list
    for spelling in spellings:
        if not (store.folder / spelling).exists():
            (store.folder / spelling).symlink_to("support")
    listed, entries = os.listdir, Path.iterdir
    monkeypatch.setattr(os, "listdir", lambda path: [name for name in listed(path) if name not in spellings])
    monkeypatch.setattr(Path, "iterdir", lambda path: (each for each in entries(path) if each.name not in spellings))
    assert "support" in store
    assert "Support" not in store
    for use in (store.get, store.remove, lambda name: store.tag(name, ["x"])):
        with pytest.raises(ValueError, match=r"no adapter 'Support': did you mean .*support"):
            use("Support")
    with pytest.raises(ValueError, match="differs from 'support' in capitals alone"):
        store.save(model, "a", stored_as="Support")
    assert store.versions("support") == [1]


@pytest.mark.parametrize("name", ["con", "NUL", "Com1.old", "lpt9.tar.gz"])
def test_windows_devices_are_no_names(store, model, name):
    assert not is_portable_name(name)
    with pytest.raises(ValueError, match="no name that Windows has for a device"):
        store.save(model, "a", stored_as=name)
    assert all(map(is_portable_name, ["console", "com0", "null.con", "a.con"]))


def test_what_is_not_there_is_said_with_what_is(store, model):
    store.save(model, "a", stored_as="support-eu")
    with pytest.raises(ValueError, match=r"holds no adapter 'support': did you mean support-eu\?"):
        store.get("support")
    with pytest.raises(ValueError, match="has no version 3: it has 1"):
        store.get("support-eu", 3)
    with pytest.raises(ValueError, match="'support-eu' has no version 3: it has 1"):
        store.get("support-eu@3")
    with pytest.raises(ValueError, match="has no version 3"):
        store.remove("support-eu", 3)
    (store.folder / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: a store is a folder"):
        AdapterStore(store.folder / "file")
    assert store.names() == ["support-eu"]


def test_a_first_adapter_that_is_not_written_leaves_the_store_to_any_base(store, model, tmp_path):
    model.parameters("a")[0].data.fill_(torch.nan)
    with pytest.raises(HalkaError, match="not finite"):
        store.save(model, "a")
    assert store.base() is None
    other = halka.adapt(tiny(seed=1))
    other.add("o", halka.LoRA(rank=4))
    store.save(other, "o")
    other.parameters("o")[0].data.fill_(torch.nan)
    with pytest.raises(HalkaError, match="not finite"):
        store.save(other, "o")
    assert store.base() is not None


def test_a_first_adapter_that_is_not_written_leaves_the_base_to_another_writer(store, model):
    """Both begin in an empty store, and the one whose adapter is not finite fails first."""
    failing = adapted(halka.LoRA(rank=4))
    failing.parameters("a")[0].data.fill_(torch.nan)
    first, second = (FileLock(store.folder / ".locks" / name) for name in ("a", "b"))
    (store.folder / ".locks").mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool, second:
        with first:
            fails = pool.submit(store.save, failing, "a")
            while store.base() is None:
                time.sleep(0.01)
            saves = pool.submit(AdapterStore(store.folder).save, model, "b")
            time.sleep(0.3)
        with pytest.raises(HalkaError, match="not finite"):
            fails.result()
        second.release()
        assert saves.result().version == 1
    assert store.base() is not None


@pytest.mark.parametrize("method", [{}, {"name": "lora"}, {"name": 5, "fields": {}}, {"name": "lora", "fields": []}])
def test_a_card_without_its_method_damages_its_own_adapter_alone(store, model, method):
    store.save(model, "b")
    path = store.save(model, "a").folder / "halka.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "method": method}))
    damaged = []
    assert [stored.name for stored in store.list(on_damage=lambda name, error: damaged.append(name))] == ["b"]
    assert damaged == ["a"]


def test_verify_passes_over_what_is_removed_meanwhile(store, model):
    store.save(model, "a")
    store.save(model, "a")
    found = store.verify()
    assert next(found)[1] == ""
    store.remove("a", 2)
    assert not [*found]


def test_the_newest_is_the_one_before_where_it_is_removed_meanwhile(store, model):
    class Removing(AdapterStore):
        """Another process removes version 2 while its tags are read."""

        def _tags(self, name):
            if 2 in self.versions(name):
                self.remove(name, 2)
            return super()._tags(name)

    store.save(model, "a")
    store.save(model, "a")
    assert [(stored.name, stored.version) for stored in Removing(store.folder).list()] == [("a", 1)]


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_a_version_that_is_no_folder_is_none(store, model, kind):
    store.save(model, "a")
    place = store.folder / "a" / "2"
    if kind == "file":
        place.write_text("notes")
    else:
        place.symlink_to(store.folder / "nowhere")
    with pytest.raises(UnknownAdapterError):
        store.get("a")


def test_what_is_copied_wrongly_is_not_stored(store, model, tmp_path, monkeypatch):
    source = halka.save(model, "a", tmp_path / "a")

    def copyfile(file, to):
        to.write_bytes(file.read_bytes()[:-1])

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", copyfile)
        with pytest.raises(DamagedFolderError, match="a changed while it was copied: add it again"):
            store.add(source)
    assert store.names() == []
    assert store.base() is None
    assert store.add(source).version == 1


def test_verify_names_what_is_damaged(store, model):
    store.save(model, "a")
    store.save(model, "b")
    path = store.folder / "b" / "1" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    found = list(store.verify())
    assert found[0][1] == ""
    assert found[1][0] == "b 1"
    assert "is damaged" in found[1][1]


# ── many at once, and crashes ───────────────────────────────────────────────────────────────────────────────────────


def test_writers_and_readers_at_once(store, model):
    """Every version is whole whenever it is seen, and none is lost."""
    folder = halka.save(model, "a", store.folder.parent / "a")

    def write(number: int) -> None:
        AdapterStore(store.folder).add(folder, f"n{number % 3}")

    def read(number: int) -> None:
        for each in AdapterStore(store.folder).list():
            each.open().verify()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: (read if number % 2 else write)(number // 2), range(48)))
    assert [store.versions(name) for name in store.names()] == [list(range(1, 9))] * 3
    assert hidden(store) == []


WRITER = """
import os, signal, sys
from contract import adapted
from halka import LoRA
from halka.storage.adapter_store import AdapterStore, name_and_version
from halka.storage.card import read_card
store, folder = AdapterStore(sys.argv[1]), sys.argv[2]
model = adapted(LoRA(rank=4))
tags = [f"tag{number}" for number in range(2000)]


def wait(event, _):
    if event == moment:
        print(os.getpid(), flush=True)
        signal.pause()


for line in sys.stdin:  # a process for each line, so that only one has to import torch
    child, moment = os.fork(), line.strip()
    if child:
        print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
        continue
    if moment:  # it waits there to be killed
        sys.addaudithook(wait)
    else:
        print(os.getpid(), flush=True)
    while True:
        store.add(folder, "a")
        store.save(model, "a")
        store.tag("a", tags)
        store.tag("a", tags, remove=True)
        while len(store.versions("a")) > 6:
            store.remove("a", store.versions("a")[0])
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_versions_and_no_garbage(store, model):
    """Killed while it adds a folder, saves a model's adapter, tags or removes."""
    folder = halka.save(model, "a", store.folder.parent / "a")
    seen, tagged, path = set(), set(), os.pathsep.join(sys.path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    arguments = [sys.executable, "-c", WRITER, str(store.folder), str(folder)]
    with subprocess.Popen(arguments, **pipes, env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        delays = (random.Random(seed).uniform(0.0, 0.08) for seed in range(12))
        for moment, seconds in [("shutil.copyfile", 0.0), *(("", delay) for delay in delays)]:
            print(moment, file=process.stdin, flush=True)
            writer = int(process.stdout.readline())
            time.sleep(seconds)
            os.kill(writer, signal.SIGKILL)
            assert int(process.stdout.readline()) == signal.SIGKILL
            assert all(wrong == "" for _, wrong in store.verify())
            tagged |= {len(each.tags) for each in store.list()}
            seen |= {*map(str, hidden(store))}
            store.clean()
            assert hidden(store) == []
        process.stdin.close()
    assert seen  # else no writer was killed in its work
    assert tagged <= {0, 2000}  # all of them or none
    store.add(folder, "a")


def test_clean_leaves_a_name_alone_that_is_being_written(store, model):
    store.save(model, "a")
    with FileLock(store.folder / ".locks" / "a"):  # as its writer, here or in another process, holds it
        (store.folder / "a" / ".2.mine").mkdir()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(AdapterStore(store.folder).clean).result() == 0
        assert (store.folder / "a" / ".2.mine").exists()
    assert store.clean() == 1
    assert hidden(store) == []


def test_what_is_no_adapters_stays(store, model):
    """Whoever names the wrong folder, such as one of runs or of plain adapters, loses nothing."""
    halka.save(model, "a", store.folder / "plain")
    for path in ("notes/x.txt", "notes/.git/HEAD", "run/.1", "run/settings.json", "a/.mine/y.txt"):
        (store.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (store.folder / path).write_text("mine")
    (store.folder / "empty").mkdir()
    store.save(model, "a")

    def mine() -> list[str]:
        paths = (path.relative_to(store.folder).as_posix() for path in store.folder.rglob("*"))
        return sorted(path for path in paths if not path.startswith(("a/1", ".locks")))

    before = mine()
    assert store.clean() == 0
    assert [*store.verify()] == [(store.get("a"), "")]
    assert mine() == before
    for write in (
        lambda: store.save(model, "a", stored_as="plain"),
        lambda: store.add(store.folder / "plain", "notes"),
    ):
        with pytest.raises(HalkaError, match="which is no adapter's version: store it under another name"):
            write()
    assert mine() == before
    (store.folder / "a" / "README.md").write_text("mine")  # beside versions it may lie
    assert store.save(model, "a").version == 2
    (store.folder / "a" / "README.md").unlink()
    store.remove("a", 2)
    store.remove("a")
    assert [path for path in before if path.startswith("a/")] == ["a/.mine", "a/.mine/y.txt"]
    assert mine() == before


def test_a_base_is_not_cleaned(store, model, tmp_path):
    (store.folder / "onnx").mkdir(parents=True)
    (store.folder / "config.json").write_text("{}")
    with pytest.raises(HalkaError, match="holds a base model"):
        store.clean()
    assert (store.folder / "onnx").exists()


def test_a_writer_removes_what_another_left(store, model):
    store.save(model, "a")
    (store.folder / "a" / ".2.left").mkdir()
    store.save(model, "a")
    assert hidden(store) == []


def test_what_cannot_be_removed_yet_keeps_no_writer_out(store, model, monkeypatch):
    """On NFS a folder is not empty as long as a process has a file of it mapped, under a name of the system's own."""
    store.save(model, "a")
    store.save(model, "a")
    remove = shutil.rmtree

    def busy(path, ignore_errors=False, **options):
        if Path(path).name.startswith(".1."):
            if ignore_errors:
                return
            raise OSError(39, "Directory not empty", str(path))
        remove(path, ignore_errors=ignore_errors, **options)

    with monkeypatch.context() as mapped:
        mapped.setattr(shutil, "rmtree", busy)
        store.remove("a", 1)
        assert store.save(model, "a").version == 3
        assert store.tag("a", ["x"]) == ("x",)
        store.clean()
    assert store.versions("a") == [2, 3]
    assert store.clean() == 1
    assert hidden(store) == []
