"""Settings: files below the environment below flags, wrong keys and values named with their place."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
import yaml

from halka.cli.train_settings import RunSettings, read, sources
from halka.methods import all_methods
from halka.training import TrainConfig
from halka.util.settings import (
    Entry,
    Setting,
    build,
    convert,
    from_environment,
    from_file,
    from_flags,
    merged,
    plain_fields,
    settings_of,
)


@dataclass(frozen=True)
class Colours:
    width: int = field(default=3, metadata={"help": "how wide"})
    ratio: float | None = field(default=None, metadata={"help": "how steep"})
    names: tuple[str, ...] = field(default=("red", "blue"), metadata={"help": "which"})
    ids: tuple[int, ...] = ()
    on: bool = False
    place: Path | None = None
    label: str | None = None


KNOWN = settings_of(Colours)


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


# ── one value ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("width", "8", 8),
        ("width", 8, 8),
        ("ratio", "1e-3", 1e-3),  # what YAML reads as text
        ("ratio", "none", None),
        ("ratio", None, None),
        ("names", "attn.q, attn.v", ("attn.q", "attn.v")),
        ("names", ["one"], ("one",)),
        ("ids", "1,2", (1, 2)),
        ("ids", [], ()),
        ("on", "true", True),
        ("on", False, False),
        ("place", "a,b", Path("a,b")),
        ("label", "none", None),
        ("label", 0.1, "0.1"),
    ],
)
def test_values_become_the_fields_type(name, value, expected):
    assert convert(KNOWN[name], Entry(value, "here")) == expected


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("width", "many", "a whole number"),
        ("width", 1.5, "a whole number"),
        ("width", True, "a whole number"),
        ("width", None, "a whole number"),
        ("ratio", "nan", "a number, or none"),
        ("ratio", "inf", "a number, or none"),
        ("ids", "1,x", "a whole number, or several with commas between"),
        ("on", "maybe", "true or false"),
        ("names", {"a": 1}, "text, or several with commas between"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(name, value, words):
    with pytest.raises(ValueError, match=f"^here: .* is not {words}$"):
        convert(KNOWN[name], Entry(value, "here"))


def test_flags_and_variables_derive_from_the_path():
    setting = Setting("train.batch_size", int, "")
    assert (setting.flag, setting.variable) == ("--batch-size", "HALKA_TRAIN_BATCH_SIZE")


def test_what_several_owners_share_is_one_setting_that_names_them():
    @dataclass(frozen=True)
    class Other:
        width: int = field(default=3, metadata={"help": "how wide"})
        names: tuple[str, ...] = field(default=("x",), metadata={"help": "which ones"})

    found = merged({"colours": KNOWN, "other": settings_of(Other)})
    assert found["width"].help == "colours, other: how wide [3]"
    assert found["names"].help == "colours: which [red,blue]; other: which ones [x]"
    assert found["ratio"].help == "colours: how steep"


# ── where values come from ──────────────────────────────────────────────────────────────────────────────────────────


def test_rising_order(tmp_path):
    layers = [
        from_file(file(tmp_path, "width: 1\nratio: 1\nnames: [one]\n"), KNOWN),
        from_environment({"HALKA_TRAIN_WIDTH": "2", "HALKA_TRAIN_RATIO": "2", "OTHER": "x"}, KNOWN),
        from_flags({"width": "3", "ratio": None}, KNOWN),
    ]
    given = layers[0] | layers[1] | layers[2]
    colours = build(Colours, KNOWN, given)
    assert (colours.width, colours.ratio, colours.names, colours.on) == (3, 2.0, ("one",), False)
    assert [given[name].where for name in ("width", "ratio")] == ["--width", "HALKA_TRAIN_RATIO"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: {lrr: 1}", "train.lrr: there is no such setting; did you mean train.lr?"),
        ("lr: 1", "lr: there is no such setting; did you mean train.lr?"),
        ("rnak: 8", "rnak: there is no such setting; did you mean rank?"),
        ("train: {rank: 8}", "train.rank: there is no such setting; did you mean rank?"),
        ("train: {steps: {a: 1}}", "train.steps: {'a': 1} is not a whole number, or none"),
        ("xyzzy: 8", "xyzzy: there is no such setting: `halka train --help` lists all"),
        ("[1, 2]", "holds no settings: it needs keys and values"),
        ("train: 5", "train: there is no such setting"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_is_named_with_the_keys_path(tmp_path, text, told):
    path = file(tmp_path, text)
    with pytest.raises(ValueError, match=re.escape(told)) as error:
        read(path, {"base": "b", "out": "o"}, {})
    assert str(path) in str(error.value)


def test_an_unknown_variable_is_an_error():
    with pytest.raises(ValueError, match="HALKA_TRAIN_WIDHT: there is no such setting; did you mean HALKA_TRAIN_WIDTH"):
        from_environment({"HALKA_TRAIN_WIDHT": "2"}, KNOWN)
    assert from_environment({"HALKA_TRAIN_WIDTH": "", "HALKA_CACHE": "x"}, KNOWN) == {}


def test_empty_files_and_sections_say_nothing(tmp_path):
    assert from_file(file(tmp_path, ""), KNOWN) == {}
    assert from_file(file(tmp_path, "train:\n"), sources().all) == {}


def test_paths_in_a_file_are_seen_from_its_folder(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "support").mkdir()
    path = file(tmp_path, "base: base\ntask: support\ndata: [a.jsonl]\nout: run\nvalidation: 0.2\n")
    run = read(path, {}, {}).run
    assert run.base == str(tmp_path / "base")
    assert run.task == "support"  # a folder of that name is no task
    assert (run.data, run.out, run.validation) == ((tmp_path / "a.jsonl",), tmp_path / "run", "0.2")


# ── what `halka train` may be told ──────────────────────────────────────────────────────────────────────────────────


def test_every_field_is_a_setting_and_no_two_share_a_flag():
    every = sources().all
    for cls, section in ((RunSettings, ""), (TrainConfig, "train."), *((m, "") for m in all_methods().values())):
        assert {f"{section}{each.name}" for each in fields(cls)} <= every.keys()
    assert len({setting.flag for setting in every.values()}) == len(every)
    assert all(setting.help for setting in every.values())


def test_the_method_and_its_training_are_built():
    flags = {"base": "b", "out": "o", "method": "prefix", "length": "7", "lr": "0.01"}
    plan = read(None, flags, {"HALKA_TRAIN_STEPS": "9"})
    assert (plan.method.name, plan.method.length, plan.train.lr, plan.train.steps) == ("prefix", 7, 0.01, 9)


def test_a_field_of_another_method_is_an_error_that_names_the_methods_own():
    for flags, environment, where in (
        ({"rank": "8"}, {}, "--rank"),
        ({}, {"HALKA_TRAIN_RANK": "8"}, "HALKA_TRAIN_RANK"),
    ):
        with pytest.raises(ValueError, match=f"^{where}: prefix has no field 'rank'; its fields are: length, start"):
            read(None, {"base": "b", "out": "o", "method": "prefix", **flags}, environment)


def test_what_is_missing_is_said_with_every_way_to_give_it():
    with pytest.raises(ValueError, match=r"^base is missing .*--base NAME, base: in a file.*HALKA_TRAIN_BASE$"):
        read(None, {}, {})


def test_a_plan_written_and_read_again_is_the_same(tmp_path):
    flags = {"base": "b", "out": str(tmp_path), "method": "lora", "targets": "attn.q,attn.v", "save_every": "none"}
    plan = read(None, flags, {})
    again = read(file(tmp_path, yaml.safe_dump(plan.settings(plan.method))), {}, {})
    assert (again.method, again.train, plain_fields(again.run)) == (plan.method, plan.train, plain_fields(plan.run))
    assert again.run.out == tmp_path
