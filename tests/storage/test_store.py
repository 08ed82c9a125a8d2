"""Adapter folders: what is saved comes back as it was, and nothing else is taken for it."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import halka
from contract import VARIANTS, adapted, disturb, ids
from full_disk import room_for
from halka.core import AdaptedModel, Method
from halka.methods import all_methods
from halka.models.fingerprint import fingerprint, own_fingerprint
from halka.storage.adapter_folder import AdapterFolder
from halka.storage.card import read_card
from halka.util.text import chat_template_fingerprint
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer, llama3_tokenizer

METHODS = [method for name, kind in all_methods().items() for method in VARIANTS.get(name, [kind()])]
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: repr(method)[:60])

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "halka.json"


def logits(model: AdaptedModel, name: str) -> torch.Tensor:
    with torch.no_grad(), model.use(name):
        return model.base(ids()).logits


def saved(folder: Path, method: Method = halka.LoRA(rank=4), **base) -> Path:  # noqa: B008 (frozen)
    model = halka.adapt(tiny(**base))
    model.add("a", method)
    disturb(model, "a")
    return halka.save(model, "a", folder / "a")


def without_card(folder: Path) -> Path:
    (folder / CARD).unlink()
    return folder


def edited(folder: Path, **changes) -> Path:
    """The folder with changes to its configuration; None takes a key out."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return sealed(folder)


def sealed(folder: Path) -> Path:
    """The folder with a Card, if it has one, that was written for the files as they are."""
    if (folder / CARD).exists():
        card = json.loads((folder / CARD).read_text())
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (CONFIG, WEIGHTS)}
        (folder / CARD).write_text(json.dumps({**card, "files": digests}))
    return folder


def retensored(folder: Path, change) -> Path:
    """The folder with what `change` makes of its tensors."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return sealed(folder)


def refused(folder: Path, match: str, model: AdaptedModel | None = None, **options) -> None:
    """Loading raises a ValueError that says so, and leaves the model, with another adapter in it, as it was."""
    if model is None:
        model = halka.adapt(tiny())
    model.add("other", halka.Prefix(length=3))
    before, adapters = logits(model, "other"), dict(model.adapters)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.base.modules()]
    bare = model.base(ids()).logits
    with pytest.raises(ValueError, match=match):
        halka.load(model, folder, **options)
    assert model.adapters == adapters
    assert torch.equal(logits(model, "other"), before)
    assert torch.equal(model.base(ids()).logits, bare)
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.base.modules()] == hooks


# ── there and back ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_method
def test_what_is_saved_comes_back_exactly(method, dtype, tmp_path):
    model = adapted(method, dtype)
    expected = logits(model, "a")
    halka.save(model, "a", tmp_path / "kept")
    again = halka.adapt(tiny(dtype=dtype))
    adapter = halka.load(again, tmp_path / "kept")
    assert again.adapters == {"kept": adapter}
    assert torch.equal(logits(again, "kept"), expected)
    again.base.zero_grad()
    with again.use("kept"):
        again.base(ids(), labels=ids()).loss.backward()
    assert all(parameter.grad is not None for parameter in again.parameters("kept"))
    # and again, from there: nothing is lost on the way
    halka.save(again, "kept", tmp_path / "twice")
    first, second = load_file(tmp_path / "kept" / WEIGHTS), load_file(tmp_path / "twice" / WEIGHTS)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "method",
    [
        halka.Tokens((49_000,)),
        halka.PositionlessPrefix(length=1, tokens=(49_000,)),
        halka.Joint((halka.Prompt(1, tokens=(49_000,)), halka.Bottleneck(width=2))),
    ],
    ids=str,
)
def test_the_ids_of_a_large_vocabulary_come_back(method, tmp_path):
    model = halka.adapt(tiny(vocab_size=50_000))
    model.add("a", method)
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "kept")
    again = halka.adapt(tiny(vocab_size=50_000))
    adapter = halka.load(again, tmp_path / "kept")
    assert adapter.method.name == method.name
    assert torch.equal(logits(again, "kept"), logits(model, "a"))


def test_fields_come_back(tmp_path):
    for number, method in enumerate(
        (
            halka.LoRA(rank=4, alpha=3.0, dropout=0.1, targets=("attn.q", "mlp.up"), scaling="root"),
            halka.DoRA(rank=4, alpha=3.0, dropout=0.1, targets=("attn.v",)),
            halka.Bottleneck(width=5, activation="tanh", targets=("attn",), reads="input", scale=0.5, dropout=0.2),
            halka.BitFit(targets=("attn.o",)),
            halka.IA3(targets=("attn.k", "mlp.down")),
        )
    ):
        folder = saved(tmp_path / str(number), method)
        assert halka.load(halka.adapt(tiny()), folder).method == method


def test_a_smaller_lora_on_a_tied_head_comes_back(tmp_path):
    model = halka.adapt(tiny(tie_word_embeddings=True))
    model.add("a", halka.LoRA(rank=4, targets=("head", "attn.q")))
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    again = halka.adapt(tiny(tie_word_embeddings=True))
    halka.load(again, tmp_path / "a")
    assert torch.equal(logits(again, "a"), logits(model, "a"))


def test_a_folder_loads_under_its_own_name_or_another(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    model = halka.adapt(tiny())
    halka.load(model, folder)
    halka.load(model, str(folder), name="b")
    monkeypatch.chdir(folder)
    model.remove("a")
    halka.load(model, ".")
    assert set(model.adapters) == {"a", "b"}


def test_a_loaded_adapter_is_not_the_saved_one(tmp_path):
    model = halka.adapt(tiny())
    halka.load(model, saved(tmp_path), name="one")
    halka.load(model, tmp_path / "a", name="two")
    expected = logits(model, "one")
    disturb(model, "two")
    assert torch.equal(logits(model, "one"), expected)


# ── the Card ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_card_says_what_it_is_and_where_from(tmp_path):
    tokenizer, base = chatml_tokenizer(), tiny()
    base.config._name_or_path = "someone/tiny"
    model = halka.adapt(base, tokenizer)
    method = halka.LoRA(rank=3)
    adapter = model.add("a", method)
    told = {"task": "support", "training": {"steps": 3, "lr": 0.1}, "measurements": {"exact_match": 0.5}}
    assert halka.save(model, "a", tmp_path / "a", **told) == tmp_path / "a"
    card = read_card(tmp_path / "a")
    assert card.base == {"name": "someone/tiny", "fingerprint": fingerprint(base), "quantize": None}
    assert card.method == {"name": "lora", "fields": json.loads(json.dumps(asdict(method)))}
    assert card.parameters == adapter.count() == sum(t.numel() for t in load_file(tmp_path / "a" / WEIGHTS).values())
    assert card.chat_template == chat_template_fingerprint(tokenizer)
    assert (card.task, card.training, card.measurements) == tuple(told.values())
    assert card.versions == {name: version(name) for name in ("halka", "torch", "transformers")}
    assert card.created.startswith("20")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted((CONFIG, WEIGHTS, CARD))


def test_a_fingerprint_tells_bases_apart_and_precisions_not():
    own = fingerprint(tiny())
    assert own == fingerprint(tiny())
    assert own == fingerprint(tiny().bfloat16())
    others = [
        tiny(seed=1),
        tiny(num_hidden_layers=3),
        tiny(intermediate_size=100),
        tiny("mistral"),
        tiny(vocab_size=98),
    ]
    assert all(fingerprint(other) != own for other in others)
    changed = tiny()
    with torch.no_grad():
        changed.model.norm.weight[0] = 2
    assert fingerprint(changed) != own


@pytest.mark.parametrize("state", ["merged", "full in use"])
def test_a_card_names_the_bases_own_weights_whatever_stands_in(state, tmp_path):
    model = adapted(halka.LoRA(rank=4))
    model.add("full", halka.Full())
    disturb(model, "full")
    if state == "merged":
        model.merge("a")
        halka.save(model, "a", tmp_path / "a")
    else:
        with model.use("full"):
            halka.save(model, "a", tmp_path / "a")
    halka.load(halka.adapt(tiny()), tmp_path / "a")


# ── saving ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_saving_twice_takes_the_place_of_the_first(tmp_path):
    folder = saved(tmp_path, halka.Prefix(length=3))
    model = adapted(halka.LoRA(rank=4))
    halka.save(model, "a", folder)
    again = halka.adapt(tiny())
    halka.load(again, folder)
    assert torch.equal(logits(again, "a"), logits(model, "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("too_large", [CONFIG, WEIGHTS, CARD])
def test_a_full_disk_while_saving_leaves_the_old_folder(too_large, tmp_path):
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = adapted(halka.LoRA(rank=4))
    disturb(model, "a")
    config, weights = len(before[CONFIG]), len(before[WEIGHTS])
    with room_for({CONFIG: config - 1, WEIGHTS: weights - 1, CARD: weights}[too_large]):
        halka.save(model, "a", folder, task="long" * weights)
    assert config < weights
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_saved(value, tmp_path):
    model = adapted(halka.LoRA(rank=4))
    with torch.no_grad():
        model.parameters("a")[3][1, 1] = value
    with pytest.raises(ValueError, match=r"adapter 'a' holds values that are not finite, in .*k_proj\.lora_B"):
        halka.save(model, "a", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("three years")
    with pytest.raises(ValueError, match=r"exists and holds thesis\.txt, which is no part of an adapter"):
        halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "a")
    assert (tmp_path / "a" / "thesis.txt").read_text() == "three years"
    (tmp_path / "empty").mkdir()
    halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "empty")


def test_something_else_beside_an_adapter_is_not_lost(tmp_path):
    (saved(tmp_path) / "thesis.txt").write_text("three years")
    with suppress(ValueError):
        halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "a")
    assert (tmp_path / "a" / "thesis.txt").read_text() == "three years"


def test_what_a_file_manager_left_in_a_folder_is_nothing_else(tmp_path):
    (saved(tmp_path) / ".DS_Store").touch()
    halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "a")
    assert not (tmp_path / "a" / ".DS_Store").exists()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "Thumbs.db").touch()
    halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "new")


def test_a_file_in_the_folders_place_is_left_alone(tmp_path):
    (tmp_path / "a").write_text("three years")
    with pytest.raises(ValueError, match="choose another folder"):
        halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "a")


def test_an_unknown_adapter_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no adapter 'b' here"):
        halka.save(adapted(halka.LoRA(rank=4)), "b", tmp_path / "b")


# ── loading is strict: the folder ───────────────────────────────────────────────────────────────────────────────────


def test_a_name_in_use_is_refused(tmp_path):
    refused(saved(tmp_path), "there is an adapter 'other' already", name="other")


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    refused(tmp_path, "holds no adapter_config.json: it is not an adapter folder")
    refused(tmp_path / "nowhere", "nowhere is not there: name an adapter's folder")


def test_a_folder_without_weights_is_refused(tmp_path):
    folder = saved(tmp_path)
    (folder / WEIGHTS).unlink()
    refused(folder, "holds no adapter_model.safetensors: the adapter is incomplete")


def test_a_pickle_is_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemError('it was read')",)

    folder = saved(tmp_path)
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(folder, r"as a pickle \(adapter_model\.bin\), which can run code.*allow_pickle")


@pytest.mark.parametrize("how", ["cut short", "a pickle"])
def test_damaged_weights_are_refused_by_name(how, tmp_path):
    folder = saved(tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2] if how == "cut short" else pickle.dumps({"a": 1}))
    refused(folder, WEIGHTS)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds no JSON object"),
        ("{}", "names no peft_type"),
        ('{"peft_type": 3}', "no peft_type"),
    ],
)
def test_a_configuration_that_is_none_is_refused(text, match, tmp_path):
    folder = saved(tmp_path)
    (folder / CONFIG).write_text(text)
    refused(sealed(folder), match)


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"strange": 1}',
        pytest.param(
            '{"base": {}, "method": {}, "parameters": 1, "chat_template": "none"}',
        ),
    ],
)
def test_a_card_that_is_none_is_refused(text, tmp_path):
    folder = saved(tmp_path)
    (folder / CARD).write_text(text)
    refused(folder, r"halka\.json")


# ── loading is strict: the tensors ──────────────────────────────────────────────────────────────────────────────────

SAMPLES = [
    halka.LoRA(rank=4),
    halka.DoRA(rank=4),
    halka.Bottleneck(width=4),
    halka.BitFit(),
    halka.IA3(),
    halka.Prefix(length=3),
    halka.Prompt(length=3),
    halka.Full(),
]
every_sample = pytest.mark.parametrize("method", SAMPLES, ids=lambda method: method.name)
carded = pytest.mark.parametrize("card", [True, False], ids=["with Card", "without Card"])


@carded
@every_sample
def test_a_missing_tensor_is_refused(method, card, tmp_path):
    folder = saved(tmp_path, method) if card else without_card(saved(tmp_path, method))
    key = sorted(load_file(folder / WEIGHTS))[0]
    retensored(folder, lambda tensors: tensors.pop(key))
    module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight").removesuffix(".ia3_l")
    shown = r"lack prompt_embeddings" if method.name in ("prefix", "prompt") else rf"missing .*{re.escape(module)}"
    refused(folder, shown + "|leaves out .*" + re.escape(module))


@carded
@every_sample
def test_an_unknown_tensor_is_refused_by_name(method, card, tmp_path):
    folder = saved(tmp_path, method) if card else without_card(saved(tmp_path, method))
    refused(retensored(folder, lambda tensors: tensors.update(strange=torch.ones(2))), "strange")


@carded
@every_sample
def test_a_tensor_of_another_shape_is_refused(method, card, tmp_path):
    if method.name in ("prefix", "prompt"):
        pytest.skip("their only tensor's shape says how long they are; other widths have tests of their own")
    folder = saved(tmp_path, method) if card else without_card(saved(tmp_path, method))

    def widen(tensors):
        key = sorted(tensors)[1]
        tensors[key] = torch.cat([tensors[key], tensors[key]])

    refused(retensored(folder, widen), r"is \(.*\), expected \(")


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(halka.Prefix(length=3)),
        halka.Prompt(length=3),
    ],
    ids=lambda method: method.name,
)
def test_a_flat_tensor_is_refused(method, tmp_path):
    flatten = lambda tensors: tensors.update({key: tensor.flatten() for key, tensor in tensors.items()})  # noqa: E731
    refused(retensored(saved(tmp_path, method), flatten), r"prompt_embeddings|embeddings is \(192,\)")


@every_sample
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_refused_by_name(method, value, tmp_path):
    folder, keys = saved(tmp_path, method), []

    def spoil(tensors):
        keys.append(sorted(tensors)[-1])
        tensors[keys[0]].view(-1)[-1] = value

    refused(retensored(folder, spoil), "holds values that are not finite, in ")
    refused(folder, keys[0].replace(".", r"\."))


# ── loading is strict: the base ─────────────────────────────────────────────────────────────────────────────────────


@every_sample
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers 2 instead of 3"),
        ({"num_hidden_layers": 1}, "num_hidden_layers 2 instead of 1"),
        ({"hidden_size": 32}, "hidden_size 64 instead of 32"),
        ({"vocab_size": 98}, "vocab_size 97 instead of 98"),
        ({"architecture": "mistral"}, "architecture llama instead of mistral"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_another_base_is_refused_saying_how_it_differs(method, changes, named, tmp_path):
    folder = saved(tmp_path, method)
    for options in ({}, {"allow_other_base": True}):
        with pytest.raises(ValueError, match=f"was made for another base, unnamed: .*{named}"):
            halka.load(halka.adapt(tiny(**changes)), folder, **options)


def test_a_base_that_was_halved_is_refused_with_the_way_that_keeps_its_fingerprint(tmp_path):
    """Of small values float16 keeps fewer bits than the bfloat16 that fingerprints are of."""
    base = tiny()
    with torch.no_grad():
        base.model.norm.weight.fill_(1.2345e-7)
    model = halka.adapt(base)
    model.add("a", halka.LoRA(rank=2))
    halka.save(model, "a", tmp_path / "a")
    with pytest.raises(ValueError, match=r"allow_other_base to load it all the same; or load .* dtype='float16'"):
        halka.load(halka.adapt(base.half()), tmp_path / "a")


@every_sample
def test_other_weights_are_refused_unless_allowed(method, tmp_path):
    folder = saved(tmp_path, method)
    model = halka.adapt(tiny(seed=1))
    with pytest.raises(ValueError, match=r"another base, unnamed: weights .* pass allow_other_base to load it all"):
        halka.load(model, folder)
    assert not model.adapters
    halka.load(model, folder, allow_other_base=True)


PROMPT = pytest.param(
    halka.Prompt(length=3),
)


@pytest.mark.parametrize(
    "method", [*(each for each in SAMPLES if each.name != "prompt"), PROMPT], ids=lambda m: getattr(m, "name", "")
)
@pytest.mark.parametrize("layers", [1, 3])
def test_without_a_card_a_base_of_another_depth_is_refused(method, layers, tmp_path):
    folder = without_card(saved(tmp_path, method))
    model = halka.adapt(tiny(num_hidden_layers=layers))
    with pytest.raises(ValueError, match=r"another base|does not have|smaller base"):
        halka.load(model, folder)
    assert not model.adapters


@every_sample
def test_without_a_card_a_base_of_another_width_is_refused(method, tmp_path):
    folder = without_card(saved(tmp_path, method))
    model = halka.adapt(tiny(hidden_size=32, intermediate_size=48))
    with pytest.raises(ValueError, match=r"another base|does not have"):
        halka.load(model, folder)
    assert not model.adapters


@pytest.mark.parametrize("method", [halka.LoRA(rank=4, targets=("attn.q",)), halka.IA3()], ids=lambda m: m.name)
def test_some_layers_only_are_refused(method, tmp_path):
    folder = without_card(saved(tmp_path, method))

    def without_the_last_layer(tensors):
        for key in [key for key in tensors if ".layers.1." in key]:
            del tensors[key]

    refused(retensored(folder, without_the_last_layer), r"leaves out \d modules that its target_modules name")


def test_modules_of_another_architecture_are_refused(tmp_path):
    folder = without_card(saved(tmp_path, halka.LoRA(rank=4), architecture="gpt2"))
    refused(folder, r"acts on 8 modules that this base does not have: transformer\.h\.0\.attn\.c_attn")


# ── loading is strict: the chat template ────────────────────────────────────────────────────────────────────────────


def test_another_chat_template_is_refused_unless_allowed(tmp_path):
    model = halka.adapt(tiny(), chatml_tokenizer())
    model.add("a", halka.LoRA(rank=4))
    folder = halka.save(model, "a", tmp_path / "a")
    message = "was trained with another chat template .* pass allow_other_template to load it all the same"
    refused(folder, message, halka.adapt(tiny(), llama3_tokenizer()))
    for tokenizer, options in (
        (llama3_tokenizer(), {"allow_other_template": True}),
        (chatml_tokenizer(), {}),
        (None, {}),
    ):
        halka.load(halka.adapt(tiny(), tokenizer), folder, **options)


def test_an_adapter_that_knew_no_template_goes_with_any(tmp_path):
    halka.load(halka.adapt(tiny(), chatml_tokenizer()), saved(tmp_path))


# ── loading is strict: what peft can do and Halka cannot ────────────────────────────────────────────────────────────

REFUSED = {"use_qalora": True, "layer_replication": [[0, 2]], "alora_invocation_tokens": [1, 2], "something_new": 1}
UNFIT = {  # options that are read, and that the weights do not bear out
    "modules_to_save": ["lm_head"],
    "layers_to_transform": [0],
    "rank_pattern": {"q_proj": 8},
    "lora_bias": True,
    "trainable_token_indices": [1],
    "target_parameters": ["weight"],
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_of_peft_that_changes_the_numbers_is_refused_by_name(option, tmp_path):
    folder = without_card(saved(tmp_path))
    refused(edited(folder, **{option: REFUSED[option]}), f"{option} = .* changes what the adapter computes")


@pytest.mark.parametrize("option", UNFIT)
def test_an_option_that_the_weights_do_not_bear_out_is_refused(option, tmp_path):
    folder = without_card(saved(tmp_path))
    refused(edited(folder, **{option: UNFIT[option]}), "do not fit|the weights lack|do not name|no weight of experts")


@pytest.mark.parametrize("method", [halka.IA3(), halka.Prefix(length=3), halka.Prompt(length=3)], ids=lambda m: m.name)
def test_so_it_is_for_the_other_methods(method, tmp_path):
    folder = without_card(saved(tmp_path, method))
    refused(
        edited(folder, modules_to_save=["lm_head"]), r"the weights lack lm_head\.weight, which modules_to_save names"
    )
    refused(edited(folder, something_new=1), "something_new = .* changes what the adapter computes")


@pytest.mark.parametrize("value", [None, False, {}, [], "none", 0])
def test_an_option_that_does_nothing_is_no_matter(value, tmp_path):
    folder = without_card(saved(tmp_path))
    config = json.loads((folder / CONFIG).read_text()) | {"something_new": value}
    (folder / CONFIG).write_text(json.dumps(config))
    halka.load(halka.adapt(tiny()), folder)


def test_dora_with_rank_stabilised_scale_has_another_alpha(tmp_path):
    folder = without_card(saved(tmp_path, halka.DoRA(rank=4, alpha=3.0)))
    method = halka.load(halka.adapt(tiny()), edited(folder, use_rslora=True)).method
    assert (method.name, method.rank, method.alpha) == ("dora", 4, 6.0)


@pytest.mark.parametrize("kind", ["LOHA", "OFT", "XLORA"])
def test_another_kind_of_adapter_is_refused_with_those_that_are_known(kind, tmp_path):
    refused(edited(saved(tmp_path), peft_type=kind), f"'{kind}' cannot be read: Halka reads LORA, IA3, PREFIX_TUNING")


def test_factors_on_the_head_come_back(tmp_path):
    method = halka.IA3(targets=("attn.k", "head"))
    folder = saved(tmp_path, method, tie_word_embeddings=False)
    model = halka.adapt(tiny(tie_word_embeddings=False))
    assert halka.load(model, folder).method == method


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_changed_since_the_card_was_written_is_refused(name, tmp_path):
    folder = saved(tmp_path)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content + b" " if name == CONFIG else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{name} changed since halka.json was written"):
        halka.load(halka.adapt(tiny()), folder)


def test_a_card_of_an_older_version_says_nothing_of_files(tmp_path):
    folder = saved(tmp_path)
    card = json.loads((folder / CARD).read_text())
    del card["files"]
    (folder / CARD).write_text(json.dumps(card))
    halka.load(halka.adapt(tiny()), folder)


def test_a_readme_in_the_folder_stays(tmp_path):
    folder = saved(tmp_path)
    (folder / "README.md").write_text("mine")
    assert saved(tmp_path) == folder
    assert (folder / "README.md").read_text() == "mine"


def test_an_unknown_method_or_field_of_our_own_is_refused(tmp_path):
    folder = saved(tmp_path, halka.BitFit())
    refused(edited(folder, peft_type="MAGIC"), "there is no method 'magic': choose one of bitfit")
    refused(
        edited(folder, peft_type="BITFIT", fields={"strength": 3}),
        "BitFit has no field .strength.: its fields are targets",
    )
    refused(edited(folder, fields={"targets": ["attn.x"]}), r"bitfit: targets are linear layers .* not 'attn\.x\'")


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
def test_a_configuration_without_rank_or_scale_is_refused(key, tmp_path):
    refused(edited(without_card(saved(tmp_path)), **{key: None}), key)


@pytest.mark.parametrize(("key", "value"), [("r", 5), ("r", 0), ("lora_dropout", 1.5)])
def test_a_configuration_that_does_not_fit_is_refused(key, value, tmp_path):
    refused(
        edited(without_card(saved(tmp_path)), **{key: value}),
        r"gives it the rank 5: they do not fit|rank must be a whole number above 0|dropout must be",
    )


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_an_adapter_whose_start_changed_its_base_is_refused_or_right(start, tmp_path):
    """PiSSA and OLoRA take what the product starts with out of the base's weights: as they are, they do not fit it."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=start, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(tiny(), config)
    theirs.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        expected = theirs(input_ids=ids()).logits
    model = halka.adapt(tiny())
    try:
        halka.load(model, tmp_path / "a")
    except ValueError:
        return
    torch.testing.assert_close(logits(model, "a"), expected, rtol=0, atol=1e-4)


# ── mapped into memory ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["a", "ab", "abcdefg"])  # headers of other lengths
def test_values_stand_where_torch_would_put_them(name, tmp_path):
    model = adapted(halka.LoRA(rank=4))
    model.add(name * 9, halka.LoRA(rank=2 + len(name)), seed=1)
    folder = halka.save(model, name * 9, tmp_path / "saved")
    tensors = AdapterFolder.open(folder).read().tensors
    assert {tensor.data_ptr() % 64 for tensor in tensors.values()} == {0}


@pytest.mark.parametrize("method", [halka.LoRA(rank=4), halka.Bottleneck(width=8), halka.DoRA(rank=4)], ids=str)
def test_training_what_was_loaded_leaves_its_files_alone(method, tmp_path):
    """The parts hold the mapped file itself, until they are written to."""
    folder = halka.save(adapted(method), "a", tmp_path / "saved")
    before = (folder / WEIGHTS).read_bytes()
    model = halka.adapt(tiny())
    with torch.inference_mode():
        halka.load(model, folder, name="a")
    loaded = {key: tensor.clone() for key, tensor in model.adapter("a").state_dict().items()}
    assert all(parameter.requires_grad for parameter in model.parameters("a"))
    with model.use("a"):
        model.base(ids()).logits.square().sum().backward()
    torch.optim.AdamW(model.parameters("a"), lr=0.1).step()
    changed = model.adapter("a").state_dict()
    assert all(not torch.equal(changed[key], tensor) for key, tensor in loaded.items())
    assert (folder / WEIGHTS).read_bytes() == before


def test_a_loaded_adapter_stays_when_its_folder_goes(tmp_path):
    folder = halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "saved")
    model = halka.adapt(tiny())
    halka.load(model, folder, name="a")
    expected = {key: tensor.clone() for key, tensor in model.adapter("a").state_dict().items()}
    halka.save(adapted(halka.LoRA(rank=8)), "a", folder)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.adapter("a").state_dict().items())


def test_values_whose_sum_is_too_large_are_finite_all_the_same(tmp_path):
    model = adapted(halka.IA3())
    with torch.no_grad():
        model.parameters("a")[0].fill_(3e38)
    folder = halka.save(model, "a", tmp_path / "saved")
    assert len(AdapterFolder.open(folder).read().tensors) > 1


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_a_loaded_adapter_is_its_mapped_file(tmp_path):
    folder = halka.save(adapted(halka.LoRA(rank=4)), "a", tmp_path / "saved")
    model = halka.adapt(tiny())
    halka.load(model, folder, name="a")
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder / WEIGHTS) in line]
    places = [range(*(int(end, 16) for end in line.split()[0].split("-"))) for line in lines]
    for tensor in model.adapter("a").state_dict().values():
        assert any(tensor.data_ptr() in place for place in places)


def test_a_state_that_is_given_keeps_what_trains_and_must_be_fp32():
    state = {key: tensor.clone() for key, tensor in adapted(halka.LoRA(rank=4)).adapter("a").state_dict().items()}
    model = halka.adapt(tiny())
    with pytest.raises(ValueError, match=r"the state holds torch\.bfloat16 in .*: parts hold fp32"):
        model.add("a", halka.LoRA(rank=4), state={key: tensor.bfloat16() for key, tensor in state.items()})
    with pytest.raises(ValueError, match=r"missing .* they are another method's, or were made for another base"):
        model.add("a", halka.LoRA(rank=4), state=dict(list(state.items())[1:]))
    assert model.adapters == {}
    adapter = model.add("a", halka.LoRA(rank=4), state=state)
    assert all(parameter.requires_grad for parameter in adapter.parameters())
    assert all(torch.equal(tensor, state[key]) for key, tensor in adapter.state_dict().items())


def test_the_fingerprint_sees_every_way_to_change_a_weight():
    model = adapted(halka.LoRA(rank=4))
    seen = [own_fingerprint(model)["weights"]]
    weight = model.base.get_parameter("model.layers.0.mlp.up_proj.weight")
    changes = [
        lambda: weight.data.mul_(2),
        lambda: setattr(weight, "data", weight.data + 1),
        lambda: weight.data.copy_(torch.zeros_like(weight)),
    ]
    for change in changes:
        change()
        seen.append(own_fingerprint(model)["weights"])
    assert len({*seen}) == len(seen)
