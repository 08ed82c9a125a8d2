"""AdapterHub's folders: what `adapters` computed with them, computed here; fixtures/adapterhub/make.py wrote them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import halka
from adapterhub_for_tests import EXPECTED, FIXTURES, READ, base, cases, classifier, files, ids, made
from contract import disturb
from halka.cli import app
from halka.storage.formats import adapterhub
from halka.storage.formats.adapterhub import heads
from halka.storage.formats.adapterhub.bottleneck import reduction_factor
from halka.storage.formats.format import Contents
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

# What is written in another of the library's forms: a fused layer's matrices all three, a prefix flat, once.
OTHERWISE = {"prefix", "prefix_flat", "mam"}


def read(folder: Contents, architecture: str) -> halka.core.AdaptedModel:
    model = halka.adapt(base(architecture))
    method, state = adapterhub.read(folder, model.targets)
    model.add("a", method, state=state)
    return model


def changed(case: str, **options) -> Contents:
    """A fixture with other options in its adapter's configuration."""
    folder = files(case)
    return Contents({**folder.config, "config": {**folder.config["config"], **options}}, folder.tensors)


def logits(model, name=None) -> torch.Tensor:
    with torch.no_grad(), model.use(name):
        return model.base(ids()).logits


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", READ)
def test_its_adapters_compute_here_what_they_compute_there(case):
    model = halka.adapt(base(case.split("/")[0]))
    halka.load(model, FIXTURES / case, name="a", allow_pickle=True)
    assert (EXPECTED[case] - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(model, "a"), EXPECTED[case], rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("llama/gated", "use_gating = True: its gates are means over the whole text"),
        ("bert/compacter", "phm_layer = True: a Compacter's matrices are sums of Kronecker products"),
        ("bert/dora", "AdapterHub's DoRA scales the layer's bias too, and Halka's does not"),
        ("gpt2/invertible", "inv_adapter = 'nice': Halka has no invertible adapters"),
    ],
)
def test_what_halka_does_not_have_is_refused_by_name(case, reason):
    with pytest.raises(ValueError, match=reason):
        read(files(case), case.split("/")[0])


@pytest.mark.parametrize(
    ("case", "options", "reason"),
    [
        (
            "llama/seq_bn",
            {"original_ln_after": False},
            "original_ln_after = False passes the adapter's output on without the residual",
        ),
        (
            "bert/kept_sum",
            {"original_ln_after": False},
            "original_ln_after = False passes the adapter's output on without the residual",
        ),
        ("llama/seq_bn", {"non_linearity": "gelu_10"}, "non_linearity 'gelu_10' is not one of relu, gelu, silu"),
        ("llama/seq_bn", {"scaling": "halved"}, "scaling is 'halved', where a number is expected"),
        ("llama/seq_bn", {"reduction_factor": {"0": 16}}, "reduction_factor names no number above 0 for layer 1"),
        (
            "llama/seq_bn",
            {"reduction_factor": 8},
            r"adapter_down.0.weight is \(2, 32\), where the configuration says 4 rows",
        ),
        ("llama/seq_bn", {"leave_out": [0, 1]}, "leave_out names every layer"),
        ("llama/seq_bn", {"leave_out": [0]}, "the weights hold 1 tensors that the configuration does not mention"),
        (
            "llama/seq_bn",
            {"mh_adapter": True},
            "the weights lack model.layers.0.attention_adapters.adapter_down.0.weight",
        ),
        ("llama/seq_bn", {"output_adapter": False}, "places no adapter: neither mh_adapter nor output_adapter"),
        ("llama/seq_bn", {"ln_after": True}, "missing model.layers.0.mlp.down_proj.norm_after.bias"),
        ("llama/seq_bn", {"architecture": "reft"}, "a ReFT, which edits single tokens' states"),
        ("bert/seq_bn", {"architecture": "prompt_tuning"}, "virtual tokens enter after the embeddings' norm"),
        ("llama/seq_bn", {"architecture": "marvel"}, "Halka does not have AdapterHub's 'marvel'"),
        ("llama/dora", {"alpha": 4}, r"its DoRA norms W \+ BA without the scale, which is 2 here"),
        ("llama/lora", {"vera_d": 0.1}, "vera_d = 0.1: its VeRA trains whole matrices"),
        ("llama/lora", {"attn_matrices": ["q", "x"]}, "attn_matrices names 'x', not one of"),
        ("llama/lora", {"selfattn_lora": False}, "adapter_config.json selects no layer"),
        ("llama/lora", {"attn_matrices": ["q", "k"]}, "the weights lack model.layers.0.self_attn.k_proj.lora_A"),
        ("llama/lora", {"r": 2**40}, r"lora_A is \(2, 32\), where the configuration says 1099511627776 rows"),
        ("llama/lora", {"r": None}, "r is None, where a number is expected"),
        ("llama/lora", {"leave_out": "all"}, "leave_out is 'all', where a list is expected"),
        ("gpt2/lora", {"attn_matrices": ["q"]}, r"c_attn.lora_A is \(4, 32\), where the configuration says 2 rows"),
        ("llama/seq_bn", {"reduction_factor": 5e-324}, "reduction_factor names no number above 0 for layer 0"),
        (
            "llama/seq_bn",
            {"reduction_factor": {"2": 8, "default": 16}},
            "names layer 2, and this base has 2: .* another",
        ),
        ("llama/seq_bn", {"leave_out": [2]}, "leave_out names layer 2, and this base has 2: .* for another base"),
        ("llama/lora", {"leave_out": [1, 7]}, "leave_out names layer 7, and this base has 2: .* for another base"),
        ("llama/seq_bn", {"scaling_of_the_future": 3}, "scaling_of_the_future = 3 changes what the adapter computes"),
        ("llama/lora", {"new_matrix": "x"}, "new_matrix = 'x' changes what the adapter computes"),
        ("llama/ia3", {"dropout": 0.1}, "dropout = 0.1 changes what the adapter computes"),
        ("llama/prefix", {"new_network": {"a": 1}}, "new_network = {'a': 1} changes what the adapter computes"),
        ("llama/mam", {"weights": [1, 2]}, r"weights = \[1, 2\] changes what the adapter computes"),
        ("llama/ia3", {"r": 2}, "r = 2 changes what the adapter computes"),
        ("llama/prefix", {"leave_out": [1]}, r"leave_out = \[1\] changes what the adapter computes"),
        ("llama/prefix", {"prefix_length": 4}, "the prefix holds 192 values, where 4 tokens of this base have 256"),
    ],
)
def test_options_that_change_the_numbers_are_honoured_or_refused(case, options, reason):
    with pytest.raises(ValueError, match=reason):
        read(changed(case, **options), case.split("/")[0])


@pytest.mark.parametrize("case", ["llama/seq_bn", "llama/lora", "llama/ia3", "llama/prefix", "llama/mam"])
def test_unknown_options_at_rest_are_passed_over(case):
    rest = {"something_new": None, "else_new": False, "more_new": [], "and_new": {}}
    model = read(changed(case, **rest), "llama")
    torch.testing.assert_close(logits(model, "a"), EXPECTED[case], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", ["llama/by_layer", "llama/mam", "gpt2/lora", "gpt2/ia3", "llama/prefix_flat"])
def test_whatever_a_configuration_holds_it_is_read_or_refused(case):
    folder, model = files(case), halka.adapt(base(case.split("/")[0]))
    broken = [
        {**folder.config, "config": {**folder.config["config"], key: value}}
        for key in folder.config["config"]
        for value in (None, "x", -1, 1e30, float("nan"), [], {}, [[1]])
    ]
    broken += [{key: each for key, each in folder.config.items() if key != left_out} for left_out in folder.config]
    refusals = 0
    for config in broken:
        try:
            method, state = adapterhub.read(Contents(config, folder.tensors), model.targets)
            model.add("a", method, state=state)
            model.remove("a")
        except ValueError:
            refusals += 1
    assert len(broken) / 8 < refusals < len(broken)


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"model_type": "gpt2"}, "made for another base: model_type gpt2 instead of llama"),
        ({"hidden_size": 64}, "made for another base: hidden_size 64 instead of 32"),
        ({"name": None}, "holds no `config` and `name`"),
        ({"config": "pfeiffer"}, "holds no `config` and `name`"),
        ({"name": "other"}, "the weights lack model.layers.0.output_adapters.adapter_down.0.weight"),
    ],
)
def test_a_folder_of_another_base_or_kind_is_refused(about, reason):
    folder = files("llama/seq_bn")
    with pytest.raises(ValueError, match=reason):
        read(Contents({**folder.config, **about}, folder.tensors), "llama")


def test_a_base_that_the_library_has_no_form_for_is_refused():
    model = halka.adapt(base("llama"))
    model.base.config.model_type = "qwen2"
    folder = files("llama/seq_bn")
    with pytest.raises(ValueError, match="written for llama, mistral, gpt2, bert, roberta, not for qwen2"):
        adapterhub.read(Contents({**folder.config, "model_type": "qwen2"}, folder.tensors), model.targets)


@pytest.mark.parametrize("role", ["memory", "memory.encoder"])
def test_a_prefix_on_such_a_base_is_not_written(role):
    model = halka.adapt(tiny("t5"))
    adapter = model.add("a", halka.PositionlessPrefix(length=2, targets=(role,)))
    with pytest.raises(ValueError, match=r"written for llama, .* not for t5"):
        adapterhub.write(adapter, model.targets, "")


def test_a_prefix_that_differs_by_layer_is_damaged():
    folder = files("llama/prefix_flat")
    key = next(iter(folder.tensors))
    with pytest.raises(ValueError, match="under every layer, and its copies differ"):
        read(Contents(folder.config, {**folder.tensors, key: folder.tensors[key] + 1}), "llama")


def test_a_norm_that_stands_there_twice_and_differs_is_damaged():
    folder = files("llama/ln_before")
    key = next(each for each in folder.tensors if each.endswith("adapter_down.0.weight"))
    with pytest.raises(
        ValueError, match=r"adapter_down\.0\.weight and adapter_norm_before\.weight are one norm, and differ"
    ):
        read(Contents(folder.config, {**folder.tensors, key: folder.tensors[key] + 1}), "llama")


@pytest.mark.parametrize(("version", "scale"), [("adapters.1.0.1", 1.0), ("3.2.1", 3.0), (None, 3.0)])
def test_before_1_1_the_library_left_out_the_scale_of_a_lora(version, scale):
    folder = files("llama/lora")
    model = read(Contents({**folder.config, "version": version}, folder.tensors), "llama")
    assert model.adapter("a").method.scale == scale


def test_names_of_older_versions_are_read():
    folder = files("bert/seq_bn")
    config = {key: value for key, value in folder.config.items() if key != "version"}
    config["config"] = {**config["config"], "non_linearity": "gelu_orig", "attention_type": "sent-lvl-dynamic"}
    config |= {"type": "text_task"}
    config["config"]["invertible_adapter"] = {"block_type": "nice", "reduction_factor": 2}
    old = {key.replace(".adapters.", ".layer_text_task_adapters."): each for key, each in folder.tensors.items()}
    without_a_head = {key.removeprefix("bert."): each for key, each in old.items()}
    model = read(Contents(config, without_a_head), "bert")
    assert model.adapter("a").method.activation == "gelu"
    new = read(changed("bert/seq_bn", non_linearity="gelu"), "bert")
    assert torch.equal(logits(model, "a"), logits(new, "a"))


def test_a_head_of_its_own_is_trained_whole_beside_the_adapter():
    for case in ("bert/classifier", "bert/flexible", "roberta/classifier", "roberta/flexible"):
        model = halka.adapt(base(case.split("/")[0], labels=3))
        adapter = halka.load(model, FIXTURES / case, name="a")
        assert [each.name for each in adapter.method.methods] == ["bottleneck", "modules"]
        torch.testing.assert_close(logits(model, "a"), EXPECTED[case], rtol=0, atol=2e-5)
        halka.load(model, FIXTURES / case, name="b", head=False)
        assert model.adapter("b").method.name == "bottleneck"


@pytest.mark.parametrize("case", ["classifier", "flexible"])
def test_a_classifier_is_converted_with_its_head_on_a_base_without(case, tmp_path):
    base("bert").save_pretrained(tmp_path / "base")
    chatml_tokenizer().save_pretrained(tmp_path / "base")
    command = ["adapters", "convert", str(FIXTURES / "bert" / case), str(tmp_path / "a"), "--base"]
    result = CliRunner().invoke(app, [*command, str(tmp_path / "base"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["method"] == "joint"
    model = halka.adapt(base("bert", labels=3))
    halka.load(model, tmp_path / "a", allow_other_base=True)  # whose head began otherwise
    torch.testing.assert_close(logits(model, "a"), EXPECTED[f"bert/{case}"], rtol=0, atol=2e-5)


def test_labels_without_names_are_numbered(tmp_path):
    config = json.loads((FIXTURES / "bert/flexible/head_config.json").read_text())
    numbered = (None, "sequence-classification", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert heads.base_spec(config) == numbered
    assert heads.base_spec({**config, "config": {**config["config"], "label2id": None}}) == numbered
    own = json.loads((FIXTURES / "bert/classifier/head_config.json").read_text())
    assert heads.base_spec({**own, "label2id": None}) == numbered


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"config": [1]}, r"head_config.json: config is \[1\], where a head's options are expected"),
        ({"label2id": ["a"]}, r"label2id is \['a'\], where labels with their numbers are expected"),
        ({"label2id": {"a": 0, "b": 0}}, "label2id is .*, where labels with their numbers are expected"),
        ({"label2id": {"a": 1, "b": 2}}, "label2id is .*, where labels with their numbers are expected"),
        ({"label2id": None, "num_labels": None}, "num_labels is None, where a number of labels is expected"),
        ({"label2id": None, "num_labels": 10**12}, "num_labels is 1000000000000, where a number of labels is expected"),
        ({"label2id": None, "num_labels": True}, "num_labels is True, where a number of labels is expected"),
    ],
)
def test_a_head_s_configuration_that_is_damaged_is_refused_in_words(options, reason):
    config = json.loads((FIXTURES / "bert/classifier/head_config.json").read_text())
    with pytest.raises(ValueError, match=reason):
        heads.base_spec({**config, **options})


@pytest.mark.parametrize("case", ["bert/classifier", "bert/flexible"])
def test_a_head_whose_tensors_are_not_those_of_its_labels_is_refused_in_words(case):
    config = json.loads((FIXTURES / case / "head_config.json").read_text())
    tensors = load_file(FIXTURES / case / "model_head.safetensors")
    targets = halka.adapt(base("bert", labels=3)).targets
    own = {"config": {**config["config"], "label2id": {"no": 0, "yes": 1}}} if config["config"] else {}
    with pytest.raises(ValueError, match=r"names 2 labels, and the head's classifier.\w+ has 3 rows: .* --no-head"):
        heads.read(Contents({**config, "label2id": {"no": 0, "yes": 1}, **own}, tensors), targets)
    for key, tensor in tensors.items():
        for spoilt in (tensor.sum(), tensor[None], tensor[..., :0]):
            with pytest.raises(ValueError, match=r"the folder's head, of a .* which this Bert"):
                heads.read(Contents(config, {**tensors, key: spoilt}), targets)


@pytest.mark.parametrize("name", [{}, {"name": None}, {"name": [1]}])
def test_a_head_without_a_name_is_refused_in_words(name):
    config = json.loads((FIXTURES / "bert/flexible/head_config.json").read_text())
    del config["name"]
    head = Contents({**config, **name}, load_file(FIXTURES / "bert/flexible/model_head.safetensors"))
    with pytest.raises(ValueError, match=r"head_config.json: name is .*, where the head's name is expected"):
        heads.read(head, halka.adapt(base("bert", labels=3)).targets)


def test_a_head_that_the_base_has_already_is_not_trained():
    model = halka.adapt(base("llama"))
    assert halka.load(model, FIXTURES / "llama/own_head").method.name == "bottleneck"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (
            "classifier",
            r"of a BertForSequenceClassification, has classifier.bias \(3,\), which this BertForMaskedLM does not",
        ),
        (
            "flexible",
            "head_type classification, .* is not what a BertForMaskedLM has: load the adapter without its head",
        ),
    ],
)
def test_a_head_that_the_base_does_not_have_is_refused_with_the_way_out(case, reason):
    model = halka.adapt(base("bert"))
    with pytest.raises(ValueError, match=reason):
        halka.load(model, FIXTURES / "bert" / case)
    assert not model.adapters


def test_a_pickle_is_read_only_where_it_is_asked_for(tmp_path):
    model = halka.adapt(base("llama"))
    with pytest.raises(ValueError, match=r"as a pickle \(pytorch_adapter.bin\), which can run code: .* allow_pickle"):
        halka.load(model, FIXTURES / "llama/prefix")
    (tmp_path / "adapter_config.json").write_text((FIXTURES / "llama/prefix/adapter_config.json").read_text())
    weights = tmp_path / "pytorch_adapter.bin"
    for harm, reason in (
        (Harm(), "holds more than tensors by their names"),
        ([1, 2], "holds more than tensors by their names"),
        ({"a": torch.ones(1).expand(10**9)}, "holds more than tensors by their names"),
        ({"a": torch.ones(2).to_sparse()}, "holds more than tensors by their names"),
        ({"a": torch.tensor([float("nan")])}, "holds values that are not finite, in a"),
        ({"a": torch.tensor([1])}, "holds torch.int64 in a"),
    ):
        torch.save(harm, weights)
        with pytest.raises(ValueError, match=reason):
            halka.load(model, tmp_path, allow_pickle=True)
    for broken in (b"no pickle", weights.read_bytes()[:200], b""):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match="is damaged"):
            halka.load(model, tmp_path, allow_pickle=True)
    assert not model.adapters


class Harm:
    """What calls a function when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("it ran code",))


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", READ)
def test_what_was_read_is_written_as_it_was(case):
    architecture, _, kind = case.partition("/")
    theirs, model = files(case), read(files(case), architecture)
    ours = adapterhub.write(model.adapter("a"), model.targets, "")
    again = read(ours, architecture)
    torch.testing.assert_close(logits(again, "a"), logits(model, "a"), rtol=0, atol=1e-5)
    assert ours.config.keys() == theirs.config.keys()
    if kind in OTHERWISE or (architecture == "gpt2" and kind.startswith(("lora", "ia3"))):
        return
    assert {key.replace(".halka.", ".t."): each.shape for key, each in ours.tensors.items()} == {
        key: each.shape for key, each in theirs.tensors.items()
    }
    assert {key: value for key, value in ours.config.items() if key not in ("config", "name")} == {
        key: value for key, value in theirs.config.items() if key not in ("config", "name")
    }
    for mine, own in zip(configs(ours), configs(theirs), strict=True):
        assert {key for key in mine if mine[key] != own[key]} <= unlike(own)


def configs(folder: Contents) -> list[dict]:
    config = folder.config["config"]
    return config["configs"] if config.get("architecture") == "union" else [config]


def unlike(own: dict) -> set[str]:
    """Options that may be said in another way and mean the same."""
    found = {"init_weights"}
    if own.get("is_parallel"):
        found.add("original_ln_before")  # which a parallel adapter does not ask
    if not own.get("original_ln_after", True):
        found |= {"original_ln_after", "residual_before_ln"}
    if isinstance(own.get("reduction_factor"), dict):
        found.add("reduction_factor")
    if own.get("attn_matrices") == ["v", "k", "q"]:
        found.add("attn_matrices")  # a set
    return found


@pytest.mark.parametrize("case", cases())
def test_what_is_written_is_read_again(case):
    model, architecture = made(case), case.split("/")[0]
    with torch.no_grad():
        folder = adapterhub.write(model.adapter("a"), model.targets, "tiny")
    assert json.loads(json.dumps(folder.config)) == folder.config
    again = read(folder, architecture)
    assert (logits(model, "a") - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(again, "a"), logits(model, "a"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_head_is_written_beside_the_adapter_and_read_again(architecture, tmp_path):
    model, theirs = classifier(architecture), FIXTURES / architecture / "classifier"
    halka.save(model, "a", tmp_path / "a", format="adapterhub")
    own, other = (load_file(folder / "model_head.safetensors") for folder in (tmp_path / "a", theirs))
    assert {key: each.shape for key, each in own.items()} == {key: each.shape for key, each in other.items()}
    own, other = (json.loads((folder / "head_config.json").read_text()) for folder in (tmp_path / "a", theirs))
    assert own == other
    again = halka.adapt(base(architecture, labels=3))
    halka.load(again, tmp_path / "a")
    assert (logits(model, "a") - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(again, "a"), logits(model, "a"), rtol=0, atol=1e-6)
    changed = tmp_path / "a" / "head_config.json"
    changed.write_text(changed.read_text() + " ")
    with pytest.raises(ValueError, match=r"head_config\.json changed since halka\.json was written"):
        halka.load(again, tmp_path / "a", name="b")


def test_of_several_modules_of_a_head_all_are_written(tmp_path):
    method = halka.Joint(
        (halka.Bottleneck(width=4), halka.Modules(("lm_head.dense",)), halka.Modules(("lm_head.layer_norm",)))
    )
    model = halka.adapt(tiny("roberta"))
    model.add("a", method)
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a", format="adapterhub")
    (tmp_path / "a" / "halka.json").unlink()
    again = halka.adapt(tiny("roberta"))
    halka.load(again, tmp_path / "a")
    torch.testing.assert_close(logits(again, "a"), logits(model, "a"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("labels", [("no", "yes"), ("no", "yes", "perhaps")])
@pytest.mark.parametrize("card", [True, False])
def test_a_head_names_the_adapters_labels_and_has_a_row_for_each(labels, card, tmp_path):
    model = halka.adapt(base("bert", labels=3))
    model.add("a", halka.Bottleneck(width=4), labels=labels)
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a", format="adapterhub")
    config = json.loads((tmp_path / "a" / "head_config.json").read_text())
    assert config["label2id"] == {label: place for place, label in enumerate(labels)}
    assert config["num_labels"] == len(labels)
    assert len(load_file(tmp_path / "a" / "model_head.safetensors")["classifier.weight"]) == len(labels)
    if not card:
        (tmp_path / "a" / "halka.json").unlink()
    again = halka.adapt(base("bert", labels=3))
    assert halka.load(again, tmp_path / "a").labels == labels
    count = len(labels)
    torch.testing.assert_close(logits(again, "a")[:, :count], logits(model, "a")[:, :count], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "method", "reason"),
    [
        ("llama", halka.Prefix(length=2), "prefix cannot be written .* train a `positionless_prefix`"),
        ("llama", halka.Prompt(length=2), "prompt cannot be written .* it has none for decoders"),
        ("llama", halka.Full(), "full cannot be written .* cannot hold whole weights"),
        ("bert", halka.DoRA(rank=2, targets=("attn.q",)), "AdapterHub's DoRA scales the layer's bias"),
        ("llama", halka.Modules(), "modules alone cannot be written"),
        (
            "llama",
            halka.Joint((halka.LoRA(rank=2, targets=("attn.q",)), halka.Modules(("model.norm",)))),
            "only hold modules of the head, and model.norm.weight is of the base",
        ),
        (
            "gpt2",
            halka.Joint((halka.Bottleneck(width=2), halka.Modules())),
            "lm_head.weight is of the base, or tied to it",
        ),
        ("llama", halka.BitFit(), "bitfit cannot be written .* AdapterHub's library has no such method"),
        ("llama", halka.Bottleneck(reads="input"), "its parallel adapters read the residual before the norm"),
        ("llama", halka.LoRA(rank=2, targets=("attn.o",)), "cannot adapt attn.o in llama: it has only attn.q, attn.k"),
        ("llama", halka.LoRA(rank=2, targets=("head",)), "cannot adapt head in llama"),
        ("llama", halka.LoRA(rank=2, targets=("embedding",)), "cannot adapt embedding in llama"),
        ("bert", halka.IA3(), "this one the input of mlp.down: bert has no layer whose output"),
        ("llama", halka.IA3(targets=("mlp.up", "mlp.down")), "AdapterHub has one factor for both"),
        (
            "llama",
            halka.LoRA(rank=2, targets=("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj")),
            "the same modules in every layer that it does not leave out",
        ),
        ("llama", halka.NormedBottleneck(norms=("after", "outer")), "one norm after the bottleneck"),
        (
            "llama",
            halka.NormedBottleneck(reads="residual", norms=("outer",)),
            "a parallel bottleneck .* keeps the output",
        ),
        (
            "llama",
            halka.Joint((halka.Bottleneck(widths=(0, 2)), halka.Bottleneck(widths=(2, 0), activation="gelu"))),
            "two of the adapter's methods act on the same kind of module",
        ),
    ],
)
def test_what_the_library_has_no_form_for_is_not_written(architecture, method, reason):
    model = halka.adapt(base(architecture))
    model.add("a", method)
    with pytest.raises(ValueError, match=reason):
        adapterhub.write(model.adapter("a"), model.targets, "")


@pytest.mark.parametrize("hidden", [32, 48, 64, 768, 1000, 4096])
def test_a_width_is_what_the_library_makes_of_its_factor(hidden):
    for width in (*range(1, hidden, max(1, hidden // 97)), hidden, hidden + 3, 2 * hidden):
        assert int(hidden // reduction_factor(hidden, width)) == width
