"""A thousand adapter folders, each spoilt in some way: every one is refused in words, and nothing else happens.

So are folders of kinds that are read alone, and AdapterHub's, of which some that are spoilt can be read all the same.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import halka
from adapterhub_for_tests import EXPECTED, FIXTURES, base, files
from contract import disturb, ids
from halka.core import AdaptedModel
from halka.models.fingerprint import fingerprint
from halka.storage.formats import adapterhub, peft
from halka.storage.formats.format import Contents
from tiny import tiny

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "halka.json"
METHODS = [
    halka.LoRA(rank=4),
    halka.DoRA(rank=4, targets=("attn.qv",)),
    halka.IA3(),
    halka.BitFit(),
    halka.Bottleneck(width=4),
    halka.Prefix(length=4),
    halka.Prompt(length=4),
    halka.Full(),
]
JUNK = [None, True, -1, 0, 1e308, "", "x" * 300, "../../x", [], [1], {}, {"a": {}}, float("nan")]


class Ran(Exception):
    """A pickle was loaded."""


class Bomb:
    def __reduce__(self):
        return (_explode, ())


def _explode():
    raise Ran


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("good")
    made = []
    for number, method in enumerate(METHODS):
        model = halka.adapt(tiny())
        model.add("a", method)
        disturb(model, "a")
        made.append(halka.save(model, "a", folder / f"{number}-{method.name}"))
    return made


# ── ways to spoil a folder: each leaves one that must not load ──────────────────────────────────────────────────────


def truncated(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([CONFIG, WEIGHTS, CARD])
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(max(1, len(content.rstrip()) - 1))])


def flipped(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([CONFIG, WEIGHTS])
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def replaced_by_noise(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([CONFIG, WEIGHTS, CARD])
    path.write_bytes(draw.randbytes(draw.randrange(200)))


def huge_header(folder: Path, draw: random.Random) -> None:
    (folder / CARD).unlink()
    size = draw.choice([2**62, 2**31, 100_000_001, 8])
    (folder / WEIGHTS).write_bytes(size.to_bytes(8, "little") + b'{"a": [' * draw.randrange(1, 9))


def without_a_file(folder: Path, draw: random.Random) -> None:
    (folder / draw.choice([CONFIG, WEIGHTS])).unlink()


def a_folder_for_a_file(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([CONFIG, WEIGHTS])
    path.unlink()
    path.mkdir()


def a_pickle(folder: Path, draw: random.Random) -> None:
    (folder / WEIGHTS).unlink()
    name = draw.choice([WEIGHTS, "adapter_model.bin", "adapter_model.pt"])
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    if draw.random() < 0.5:
        (folder / CARD).unlink()


def deep_json(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([CONFIG, CARD])
    path.write_text('{"a": ' + "[" * 100_000)


def without_tensors(folder: Path, draw: random.Random) -> None:
    tensors = load_file(folder / WEIGHTS)
    for key in draw.sample(sorted(tensors), draw.randrange(1, len(tensors) + 1)):
        del tensors[key]
    rewritten(folder, tensors, draw)


def strange_tensors(folder: Path, draw: random.Random) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = draw.choice(["x", "../../x", "base_model.model.x.lora_A.weight", "base_model.model." + "a" * 300, ""])
    tensors[name] = torch.zeros(draw.choice([0, 1, 4]), 64)
    rewritten(folder, tensors, draw)


def other_shapes(folder: Path, draw: random.Random) -> None:
    tensors = load_file(folder / WEIGHTS)
    key = draw.choice(sorted(tensors))
    tensor = tensors[key]
    tensors[key] = draw.choice(
        [lambda: tensor[..., :-1], lambda: tensor[None], lambda: tensor.new_zeros(0), lambda: torch.tensor(1.0)]
    )().contiguous()
    rewritten(folder, tensors, draw)


def not_finite(folder: Path, draw: random.Random) -> None:
    tensors = load_file(folder / WEIGHTS)
    key = draw.choice(sorted(tensors))
    flat = tensors[key].flatten()
    flat[draw.randrange(flat.numel())] = draw.choice([float("nan"), float("inf"), -float("inf")])
    tensors[key] = flat.view(tensors[key].shape)
    rewritten(folder, tensors, draw)


def other_types(folder: Path, draw: random.Random) -> None:
    """No real numbers, or some that fp32 has no room for."""
    tensors = load_file(folder / WEIGHTS)
    key = draw.choice(sorted(tensors))
    if draw.random() < 0.3:
        tensors[key] = tensors[key].double().fill_(1e300)
    else:
        tensors[key] = tensors[key].to(draw.choice([torch.int64, torch.bool, torch.uint8, torch.complex64]))
    rewritten(folder, tensors, draw)


def another_kind(folder: Path, draw: random.Random) -> None:
    config = json.loads((folder / CONFIG).read_text())
    kinds = {
        "LORA",
        "IA3",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
        "BITFIT",
        "BOTTLENECK",
        "FULL",
        "VERA",
        "lora",
        "",
        "../x",
    }
    config["peft_type"] = draw.choice(sorted(kinds - {config["peft_type"]}) + JUNK)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / CARD).unlink()


def huge_fields(folder: Path, draw: random.Random) -> None:
    """Sizes of our own methods, at any depth, that no such file can hold."""
    size = draw.choice([10**12, 2**63, 10**400])
    fields = {"lora": {"rank": size}, "prefix": {"length": size}, "bottleneck": {"widths": [size, size]}}
    name = draw.choice(sorted(fields))
    methods = [{"name": name, "fields": fields[name]}, {"name": "bitfit", "fields": {}}]
    alone = {"peft_type": f"HALKA_{name.upper()}", "fields": fields[name]}
    config = draw.choice([alone, {"peft_type": "JOINT", "fields": {"methods": methods}}])
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / CARD).unlink()


def another_base(folder: Path, draw: random.Random) -> None:
    card = json.loads((folder / CARD).read_text())
    key = draw.choice(sorted(card["base"]["fingerprint"]))
    card["base"]["fingerprint"][key] = draw.choice(["other", -5, {"a": 1}])
    (folder / CARD).write_text(json.dumps(card))


def junk_in_the_card(folder: Path, draw: random.Random) -> None:
    card = json.loads((folder / CARD).read_text())
    if draw.random() < 0.3:
        (folder / CARD).write_text(json.dumps(draw.choice(JUNK[:-1])))
    else:
        card["base"] = draw.choice([each for each in JUNK if each != {}] + [{"name": "x", "fingerprint": 3}])
        (folder / CARD).write_text(json.dumps(card))


def a_loop_of_links(folder: Path, draw: random.Random) -> None:
    path = folder / draw.choice([CONFIG, WEIGHTS])
    path.unlink()
    os.symlink(path.name, path)


def rewritten(folder: Path, tensors: dict[str, torch.Tensor], draw: random.Random) -> None:
    save_file(tensors, folder / WEIGHTS)
    if draw.random() < 0.7:
        (folder / CARD).unlink()


WAYS: list[Callable[[Path, random.Random], None]] = [
    truncated,
    flipped,
    replaced_by_noise,
    huge_header,
    without_a_file,
    a_folder_for_a_file,
    a_pickle,
    deep_json,
    without_tensors,
    strange_tensors,
    other_shapes,
    not_finite,
    other_types,
    another_kind,
    huge_fields,
    another_base,
    junk_in_the_card,
    a_loop_of_links,
]


def everything(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_spoilt_folder_is_refused_in_words_and_nothing_else_happens(way, good, tmp_path):
    model: AdaptedModel = halka.adapt(tiny())
    with torch.no_grad():
        before = model.base(ids()).logits
    weights = fingerprint(model.base)
    for number in range(1008 // len(WAYS)):
        draw = random.Random(f"{way.__name__} {number}")
        folder = tmp_path / "spoilt" / "a"
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(draw.choice(good), folder)
        way(folder, draw)
        here = everything(tmp_path)
        with pytest.raises((ValueError, OSError)) as refused:
            halka.load(model, folder, allow_other_base=way is not another_base and draw.random() < 0.3)
        assert str(folder) in str(refused.value), number
        assert everything(tmp_path) == here
        assert model.adapters == {}
    with torch.no_grad():
        assert torch.equal(model.base(ids()).logits, before)
    assert fingerprint(model.base) == weights


# ── folders that others wrote ───────────────────────────────────────────────────────────────────────────────────────

SHAPES: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda tensor: torch.tensor(1.0),
    lambda tensor: tensor.new_zeros(0),
    lambda tensor: tensor[None],
    lambda tensor: tensor[..., :-1],
    lambda tensor: tensor[:0],
]
PLACE = "base_model.model.model.layers.{}.self_attn.q_proj."
READ_ALONE = {
    "ADALORA": ({"init_r": 4, "lora_alpha": 8}, {"lora_A": (4, 64), "lora_B": (64, 4), "lora_E": (4, 1)}, {}),
    "VERA": (
        {"r": 4},
        {"vera_lambda_b": (64,), "vera_lambda_d": (4,)},
        {"base_model.vera_A": (4, 64), "base_model.vera_B": (64, 4)},
    ),
}


@pytest.mark.parametrize("kind", READ_ALONE)
def test_tensors_of_any_shape_are_refused_in_kinds_that_are_read_alone(kind):
    options, own, shared = READ_ALONE[kind]
    config = {"peft_type": kind, "target_modules": ["q_proj"], **options}
    shapes = {f"{PLACE.format(layer)}{key}": shape for layer in (0, 1) for key, shape in own.items()} | shared
    tensors = {key: torch.ones(shape) for key, shape in shapes.items()}
    model = halka.adapt(tiny())

    def add(name: str, given: dict[str, torch.Tensor]) -> None:
        method, state = peft.read(Contents(config, given), model.targets)
        model.add(name, method, state=state)

    add("a", tensors)
    for key in tensors:
        for change in SHAPES:
            with pytest.raises(ValueError, match=r"."):
                add("b", {**tensors, key: change(tensors[key])})
            assert [*model.adapters] == ["a"]


def test_a_module_that_is_no_linear_layer_is_refused_of_a_vera():
    config, tensors = {"peft_type": "VERA", "r": 4}, {"base_model.vera_A": torch.ones(4, 64)}
    tensors |= {"base_model.vera_B": torch.ones(64, 4)}
    tensors |= {f"base_model.model.model.layers.0.{key}": torch.ones(4) for key in ("vera_lambda_b", "vera_lambda_d")}
    with pytest.raises(ValueError, match=r"model\.layers\.0, which is no linear layer of this base"):
        peft.read(Contents(config, tensors), halka.adapt(tiny()).targets)


def with_another_shape(folder: Contents, draw: random.Random) -> None:
    """Of a tensor, and of those that are the same: prefixes stand under every layer."""
    key = draw.choice(sorted(folder.tensors))
    old, new = folder.tensors[key], draw.choice(SHAPES)(folder.tensors[key])
    folder.tensors.update({each: new for each, tensor in folder.tensors.items() if torch.equal(tensor, old)})


def with_other_options(folder: Contents, draw: random.Random) -> None:
    """At any depth of the configuration."""
    places, left = [], [folder.config]
    while left:
        there = left.pop()
        places += [(there, key) for key in there]
        left += [each for value in there.values() for each in (value if isinstance(value, list) else [value])]
        left = [each for each in left if isinstance(each, dict)]
    there, key = draw.choice(places)
    there[key] = draw.choice([*JUNK, 5e-324, 10**400, 2.5, [[1]], {"default": 5e-324}])
    if draw.random() < 0.1:
        del there[key]


@pytest.mark.parametrize("way", [with_another_shape, with_other_options], ids=lambda way: way.__name__)
def test_whatever_adapterhubs_folders_hold_they_are_read_or_refused_in_words(way):
    heads = [case for case in EXPECTED if (FIXTURES / case / "head_config.json").exists()]
    models = {}
    refusals = 0
    for number in range(300):
        draw = random.Random(f"{way.__name__} {number}")
        case = draw.choice(heads if draw.random() < 0.2 else sorted(EXPECTED))
        architecture, labels = case.split("/")[0], 3 if case in heads and "own" not in case else 0
        if (architecture, labels) not in models:
            models[architecture, labels] = halka.adapt(base(architecture, labels=labels))
        model, folder, head = models[architecture, labels], files(case), None
        if case in heads:
            config = json.loads((FIXTURES / case / "head_config.json").read_text())
            head = Contents(config, load_file(FIXTURES / case / "model_head.safetensors"))
        way(head if head is not None and draw.random() < 0.5 else folder, draw)
        try:
            method, state = adapterhub.read(Contents(folder.config, folder.tensors, head), model.targets)
            model.add("a", method, state=state)
            model.remove("a")
        except ValueError as error:
            refusals += 1
            assert str(error)  # noqa: PT017
        except Exception as error:
            raise AssertionError((case, number)) from error
        assert not model.adapters
    assert refusals > 60
