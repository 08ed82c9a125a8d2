"""A view is the base with one adapter, whoever calls it: the same numbers, in passes, in backward and compiled."""

from __future__ import annotations

import contextlib
import copy
import inspect
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

import halka
from classifiers import CLASSES, TAGS, classifier
from contract import disturb, ids, weights_of
from halka.core import AdaptedModel
from kinds import KINDS, bare, logits, model_with
from tiny import tiny

EVERY = pytest.mark.parametrize("kind", [*KINDS, "full"])


@pytest.fixture
def compiler():
    """Nothing compiled before, and nothing left."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(model: AdaptedModel, name: str, run, checkpointed: bool = False) -> list[torch.Tensor]:
    run.train()
    run(ids(), labels=ids(), use_cache=False).loss.backward()
    run.eval()
    grads = [parameter.grad for parameter in model.parameters(name)]
    for parameter in model.parameters(name):
        parameter.grad = None
    assert all(grad is not None for grad in grads)
    return grads


@EVERY
def test_a_pass_and_an_answer_are_those_of_use(kind):
    model = model_with(kind)
    view = halka.view(model, kind)
    assert torch.equal(view(ids()).logits, logits(model, kind))
    assert torch.equal(view.forward(ids()).logits, logits(model, kind))
    with model.use(kind):
        expected = model.base.generate(ids(), max_new_tokens=6, do_sample=False)
    assert torch.equal(view.generate(ids(), max_new_tokens=6, do_sample=False), expected)
    assert torch.equal(halka.view(model, None)(ids()).logits, bare(model))
    with model.use(None):  # blocks nest
        assert torch.equal(view(ids()).logits, logits(model, kind))


@EVERY
@pytest.mark.filterwarnings("ignore:.*use_cache")
def test_gradients_are_those_of_use_also_where_layers_are_computed_once_more(kind):
    model = model_with(kind, "lora") if kind != "lora" else model_with("lora", "ia3")
    with model.use(kind):
        expected = gradients(model, kind, model.base)
    view = halka.view(model, kind)
    for got, wanted in zip(gradients(model, kind, view), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-7)
    other = halka.view(model, next(name for name in model.adapters if name != kind))
    other.activation_checkpointing_enable()  # the base's layers have it then, for every view
    for got, wanted in zip(gradients(model, kind, view), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    other.activation_checkpointing_disable()
    assert not model.base.is_activation_checkpointing
    assert not model.base.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("bert", "sequence-classification"),
        ("roberta", "token-classification"),
        ("modernbert", None),
        ("t5", None),
    ],
)
def test_bases_of_other_kinds_have_views_too(architecture, kind):
    model = halka.adapt(tiny(architecture, kind=kind))
    for name, method in (("lora", halka.LoRA(rank=4)), ("prefix", halka.Prefix(length=3))):
        model.add(name, method)
        disturb(model, name)
    labels = torch.tensor([0, 1, 0]) if kind == "sequence-classification" else ids() % 2
    for name in model.adapters:
        view = halka.view(model, name)
        with model.use(name):
            expected = model.base(ids(), labels=labels)
            expected.loss.backward()
        grads = [parameter.grad.clone() for parameter in model.parameters(name)]
        for parameter in model.parameters(name):
            parameter.grad = None
        view.activation_checkpointing_enable()
        view.train()
        got = view(ids(), labels=labels)
        got.loss.backward()
        view.activation_checkpointing_disable()
        torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-5)
        for parameter, grad in zip(model.parameters(name), grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-5)


def test_layers_are_computed_once_more_with_the_mode_they_had():
    """A base with dropout: without checkpoints and with them, the same seed drops the same."""
    model = halka.adapt(tiny("gpt2", attn_pdrop=0.3, resid_pdrop=0.3, embd_pdrop=0.3))
    model.add("a", halka.LoRA(rank=4, dropout=0.3))
    disturb(model, "a")
    view = halka.view(model, "a")
    torch.manual_seed(0)
    plain = gradients(model, "a", view)
    view.activation_checkpointing_enable()
    torch.manual_seed(0)
    for got, wanted in zip(gradients(model, "a", view), plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-6)
    torch.manual_seed(1)
    assert not torch.equal(gradients(model, "a", view)[0], plain[0])
    assert not model.base.training
    assert not view.training


def test_modes_are_the_views_own():
    model = model_with("lora", "ia3")
    one, other = halka.view(model, "lora"), halka.view(model, "ia3")
    one.train()
    assert one.training
    assert not other.training
    assert not model.base.training
    seen = []
    with model.base.register_forward_pre_hook(lambda module, args: seen.append(module.training)):
        one(ids()), other(ids())
    assert seen == [True, False]
    assert not model.base.training


def test_the_adapter_drops_in_passes_of_views_that_train_and_in_no_others():
    model = halka.adapt(tiny())
    model.add("a", halka.LoRA(rank=4, dropout=0.5))
    disturb(model, "a")
    expected = logits(model, "a")
    one, other = halka.view(model, "a"), halka.view(model, "a")
    one.train()
    for _ in range(2):
        assert not torch.equal(one(ids()).logits, expected)
        assert torch.equal(other(ids()).logits, expected)
        assert torch.equal(logits(model, "a"), expected)
    third = halka.view(model, "a")
    assert not torch.equal(one(ids()).logits, expected)
    assert torch.equal(third(ids()).logits, expected)
    part = next(iter(model.adapter("a").parts.values()))
    part.register_forward_pre_hook(lambda *_: 1 / 0)
    with contextlib.suppress(ZeroDivisionError):
        one(ids())
    assert not part.training


def test_labels_are_the_adapters_own_and_all_else_of_the_configuration_is_the_bases(tmp_path):
    model = classifier(labels=("good", "bad", "meh"))
    model.add("own", halka.LoRA(rank=4), labels=("no", "yes", "perhaps"))
    model.add("few", halka.LoRA(rank=4), labels=("no", "yes"))
    model.add("plain", halka.LoRA(rank=4))
    for name in model.adapters:
        disturb(model, name, by=0.3)
    assert halka.view(model, "plain").config is model.base.config
    for name in ("own", "few"):
        config = halka.view(model, name).config
        labels = model.labels_of(name)
        assert config.id2label == dict(enumerate(labels))
        assert config.label2id == {label: place for place, label in enumerate(labels)}
        assert config.num_labels == len(labels)
        assert copy.deepcopy(config).id2label == config.id2label
        assert config.to_dict()["id2label"] == config.id2label
        config.save_pretrained(tmp_path)
        assert type(model.base.config).from_pretrained(tmp_path).id2label == config.id2label
        assert isinstance(config, type(model.base.config))
        config.use_cache = not config.use_cache
        assert model.base.config.use_cache == config.use_cache
    assert model.base.config.num_labels == 3


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
def test_logits_and_loss_are_of_the_adapters_labels_where_the_base_has_more(kind):
    model = classifier(kind=kind, labels=("good", "bad", "meh"))
    model.add("few", halka.LoRA(rank=4), labels=("no", "yes"))
    disturb(model, "few", by=0.3)
    view = halka.view(model, "few")
    labels = ids() % 2 if kind == TAGS else ids()[:, 0] % 2
    with model.use("few"):
        expected = model.base(ids()).logits[..., :2]
    made = view(ids(), labels=labels)
    assert torch.equal(made.logits, expected)
    torch.testing.assert_close(made.loss, F.cross_entropy(expected.flatten(0, -2), labels.flatten()))
    by_place = view(ids(), None, None, None, None, labels)
    assert torch.equal(by_place.loss, made.loss)
    loss, logits = view(ids(), labels=labels, return_dict=False)
    assert torch.equal(loss, made.loss)
    assert torch.equal(logits, made.logits)


def test_it_passes_for_the_base():
    model = model_with("lora")
    view = halka.view(model, "lora")
    assert isinstance(view, PreTrainedModel)
    assert isinstance(view, type(model.base))
    assert type(view).__name__ == "LlamaForCausalLM"
    assert type(view) is type(halka.view(model, None))
    assert inspect.signature(view.forward) == inspect.signature(model.base.forward)
    assert view.config is model.base.config
    assert view.device == model.base.device
    assert view.dtype == model.base.dtype
    assert view.get_input_embeddings() is model.base.get_input_embeddings()
    assert view.generation_config is model.base.generation_config


@EVERY
def test_it_shows_the_bases_parameters_and_the_adapters_and_trains_these(kind):
    model = model_with(*{kind: 0, "bitfit": 0})
    view = halka.view(model, kind)
    shown = dict(view.named_parameters())
    assert {name: shown[name] for name, _ in model.base.named_parameters()} == dict(model.base.named_parameters())
    trained = [parameter for parameter in shown.values() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in model.parameters(kind)}
    assert not any(parameter.requires_grad for parameter in halka.view(model, None).parameters())
    before = weights_of(model.base)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    view.train()(ids(), labels=ids()).loss.backward()
    optimizer.step()
    assert not torch.equal(halka.view(model, kind)(ids()).logits, bare(model))
    assert all(torch.equal(before[name], parameter) for name, parameter in model.base.named_parameters())


@EVERY
def test_its_values_come_and_go_as_a_folder_and_as_a_state(kind, tmp_path):
    model = model_with(kind)
    view = halka.view(model, kind)
    (tmp_path / "trainer_state.json").write_text("{}")
    view.save_pretrained(tmp_path)
    assert (tmp_path / "trainer_state.json").exists()
    halka.load(model, tmp_path, name="again")
    assert torch.equal(logits(model, "again"), logits(model, kind))
    state = {name: value.clone() for name, value in view.state_dict().items()}
    assert set(state) == {name for name, parameter in view.named_parameters() if parameter.requires_grad}
    expected = logits(model, kind)
    disturb(model, kind, by=0.3)
    assert not torch.equal(logits(model, kind), expected)
    view.load_state_dict(state)
    assert torch.equal(logits(model, kind), expected)
    with pytest.raises(ValueError, match="missing"):
        view.load_state_dict({}, strict=False)
    bare_state = halka.view(model, None).state_dict()
    assert bare_state.keys() == model.base.state_dict().keys()
    assert all(torch.equal(bare_state[name], value) for name, value in model.base.state_dict().items())
    with pytest.raises(ValueError, match="view of the bare base"):
        halka.view(model, None).save_pretrained(tmp_path)


def test_what_cannot_be_is_refused():
    model = model_with("lora")
    with pytest.raises(ValueError, match="no adapter 'nobody'"):
        halka.view(model, "nobody")
    view = halka.view(model, "lora")
    with pytest.raises(ValueError, match="use_reentrant=False"):
        view.activation_checkpointing_enable({"use_reentrant": True})
    view.train()
    view.adapter.requires_grad_(False)
    with pytest.raises(ValueError, match="something froze adapter 'lora', as peft's get_peft_model does: leave peft_"):
        view(ids())
    with torch.no_grad():
        view(ids())
    model.remove("lora")
    model.add("lora", halka.LoRA(rank=2))
    with pytest.raises(ValueError, match="make a new view"):
        view(ids())
    with pytest.raises(ValueError, match="resize the base's"):
        view.resize_token_embeddings(128)


def test_it_saves_its_own_adapter_and_no_other_of_that_name(tmp_path):
    model = model_with("lora")
    view = halka.view(model, "lora")
    values = {name: value.clone() for name, value in view.state_dict().items()}
    model.remove("lora")
    with pytest.raises(ValueError, match="was removed, or a pool evicted it"):
        view.save_pretrained(tmp_path)
    model.add("lora", halka.LoRA(rank=2))
    with pytest.raises(ValueError, match="was removed, or a pool evicted it"):
        view.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    with pytest.raises(ValueError, match="was removed, or a pool evicted it"):
        view.load_state_dict(values)
    assert all(torch.equal(value, values[name]) for name, value in view.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_who_writes_into_all_parameters_writes_into_the_adapters(dtype):
    """As TRL does where it mixes a trained adapter into its reference, without counting tensors' versions."""
    model = halka.adapt(tiny(dtype=dtype))
    for name in ("trained", "reference"):
        model.add(name, halka.LoRA(rank=4))
    disturb(model, "trained", by=0.3)
    before = weights_of(model.base)
    trained, reference = halka.view(model, "trained"), halka.view(model, "reference")
    with torch.no_grad():
        reference(ids())  # what a pass without gradients keeps is of before
        for target, source in zip(reference.parameters(), trained.parameters(), strict=True):
            target.data.copy_(source.data)
        assert torch.equal(reference(ids()).logits, trained(ids()).logits)
    assert not [*halka.view(model, None).parameters()]
    trained.requires_grad_(True)
    assert all(torch.equal(before[name], parameter) for name, parameter in model.base.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.base.parameters())
    assert trained.num_parameters() > model.base.num_parameters()
    assert trained.dtype == dtype


def test_threads_have_views_of_their_own():
    model = model_with("lora", "prefix", "ia3")
    views = {name: halka.view(model, name) for name in (*model.adapters, None)}
    expected = {name: logits(model, name) for name in views}
    wrong = []

    def work(name):
        for _ in range(20):
            with torch.no_grad():
                if not torch.equal(views[name](ids()).logits, expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in views]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "prompt", "full"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo's own look
def test_compiled_it_computes_the_same_and_sees_every_change(kind, compiler):
    """Without gradients first: what parts then keep from pass to pass must not become a constant of the graph."""
    model = model_with(*{kind: 0, "dora": 0}, num_hidden_layers=1)
    view, other = halka.view(model, kind), halka.view(model, "dora")
    compiled = torch.compile(view, backend="eager")
    optimizer = torch.optim.AdamW(model.parameters(kind), lr=1e-2, fused=True)
    for _ in range(2):
        with torch.no_grad():
            expected = logits(model, kind)
            for _ in range(2):
                torch.testing.assert_close(compiled(ids(), use_cache=False).logits, expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(other(ids()).logits, logits(model, "dora"), rtol=0, atol=0)
        out = compiled(ids(), labels=ids(), use_cache=False)
        torch.testing.assert_close(out.logits, expected, rtol=0, atol=1e-5)
        out.loss.backward()
        got = [parameter.grad.clone() for parameter in model.parameters(kind)]
        optimizer.zero_grad()
        with model.use(kind):
            model.base(ids(), labels=ids()).loss.backward()
        for mine, parameter in zip(got, model.parameters(kind), strict=True):
            torch.testing.assert_close(mine, parameter.grad, rtol=0, atol=1e-6)
        optimizer.step()
        optimizer.zero_grad()
        assert not torch.equal(logits(model, kind), expected)


def test_what_was_compiled_without_an_adapter_does_not_serve_one(compiler):
    """Neither for the same base, nor for another of its class."""
    first, second = (model_with(*names, num_hidden_layers=1) for names in (["ia3"], ["ia3", "head"]))
    compiled = torch.compile(halka.view(first, "ia3"), backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids()).logits, logits(first, "ia3"), rtol=0, atol=1e-5)
        other = torch.compile(halka.view(second, "head"), backend="eager")
        torch.testing.assert_close(other(ids()).logits, logits(second, "head"), rtol=0, atol=1e-5)
        first.add("head", KINDS["head"])
        disturb(first, "head")
        late = torch.compile(halka.view(first, "head"), backend="eager")
        torch.testing.assert_close(late(ids()).logits, logits(first, "head"), rtol=0, atol=1e-5)
        torch.testing.assert_close(compiled(ids()).logits, logits(first, "ia3"), rtol=0, atol=1e-5)


def test_a_cast_is_the_base_s_and_leaves_the_adapters_in_fp32():
    model = model_with("lora")
    view, before = halka.view(model, "lora"), copy.deepcopy(model.adapter("lora").state_dict())
    for cast in (view.bfloat16, lambda: view.to(torch.float16), view.half, view.double):
        assert cast() is view
        assert {parameter.dtype for parameter in model.base.parameters()} == {view.dtype}
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.adapter("lora").state_dict().items())
        assert {parameter.dtype for parameter in view.parameters()} == {torch.float32}
    view.float()
    assert torch.equal(view(ids()).logits, logits(model, "lora"))


def test_what_cannot_be_copied_or_pickled_says_what_can():
    model = model_with("lora")
    with pytest.raises(halka.HalkaError, match=r"neither pickled nor copied: halka\.save and halka\.load keep"):
        pickle.dumps(model)
    for one in (model, halka.view(model, "lora")):
        with pytest.raises(halka.HalkaError, match="neither pickled nor copied"):
            copy.deepcopy(one)
    kept, expected = pickle.loads(pickle.dumps(model.base)), bare(model)
    with torch.no_grad(), model.use("lora"):
        assert torch.equal(kept(ids()).logits, expected)


def test_replicas_of_a_base_are_refused_within_a_block():
    """Those of DataParallel, which compute in threads of their own: bare they would be wrong, and nobody would know."""
    model = model_with("lora")
    with model.use("lora"), ThreadPoolExecutor(1) as threads:
        copied = model.base._replicate_for_data_parallel()
        assert copied._is_replica
        with pytest.raises(RuntimeError, match="the base was called outside of"):
            threads.submit(copied, ids()).result()
