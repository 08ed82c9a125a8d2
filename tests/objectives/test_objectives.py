"""Classification, tagging and sequence to sequence: transformers' own losses, heads apart, and one loop for all."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

import halka
from classifiers import CLASSES, LABELS, TAGS, TEXTS, classifier, example, examples, logits
from contract import disturb
from halka.data.batches import IGNORE_INDEX
from halka.data.examples import Example, Message
from halka.data.labels import classes_in
from halka.data.tools import ToolCall
from halka.evaluation.evaluating import evaluate
from halka.evaluation.generation import iter_answers
from halka.models import pad_id
from halka.models.heads import head_of, label_rows
from halka.models.loading import load_base
from halka.objectives import objective_of
from halka.objectives.tagging import Tagging
from halka.storage.card import read_card
from halka.training import Job, TrainConfig, as_tokens, mean_loss, train, train_many
from halka.util.errors import DataError
from tiny import tiny
from tokenizers_for_tests import plain_tokenizer

ARCHITECTURES = ("bert", "llama")
CONFIG = TrainConfig(steps=4, batch_size=4, lr=1e-2, schedule="constant", warmup=0.0)
LORA = halka.LoRA(rank=4, alpha=8)


def model_with(architecture: str = "bert", kind: str = CLASSES, **methods):
    model = classifier(architecture, kind)
    for seed, (name, method) in enumerate(methods.items()):
        model.add(name, method, seed=seed)
        disturb(model, name, seed=seed)
    return model


# ── what is learned ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_transformers(architecture, kind):
    model = model_with(architecture, kind, a=LORA)
    objective = objective_of(model)
    items = as_tokens(model, examples(kind), CONFIG, "a")
    batch, count = objective.collate(items, pad_id(model)), sum(item.labels for item in items)

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        names, parameters = zip(*model.adapter("a").named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))

    with model.use("a"):
        theirs = model.base(**batch.inputs, labels=batch.labels).loss
        expected = gradients(theirs)
        summed = objective.loss(model, "a", objective.outputs(model, batch), batch.labels)
        found = gradients(summed / count)
    assert count == int((batch.labels != IGNORE_INDEX).sum())
    torch.testing.assert_close(summed / count, theirs)
    assert any("lora" in key for key in found)
    assert any(key.startswith(("classifier.", "score.")) for key in found)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:the training examples have .* of validation")
@pytest.mark.parametrize("kind", [CLASSES, TAGS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_learns_and_answers_by_names(architecture, kind):
    model = model_with(architecture, kind, a=LORA)
    data = examples(kind)
    steps = list(train(model, "a", data, replace(CONFIG, steps=30), validation=data))
    assert mean_loss(model, "a", as_tokens(model, data, CONFIG, "a")) == pytest.approx(
        min(step.validation for step in steps if step.validation is not None), rel=1e-5
    )
    metric = "tag_accuracy" if kind == TAGS else "accuracy"
    assert evaluate(model, "a", data, [metric]).scores[metric].value == 1
    assert dict(iter_answers(model, "a", data)) == {i: each.answers[0] for i, each in enumerate(data)}


def test_accumulated_batches_are_one_large_batch():
    whole, parts = model_with(a=LORA), model_with(a=LORA)
    data = examples(count=4)
    (one,) = train(whole, "a", data, replace(CONFIG, steps=1))
    (two,) = train(parts, "a", data, replace(CONFIG, steps=1, batch_size=2, accumulate=2))
    assert two.loss == pytest.approx(one.loss, rel=1e-5)
    assert two.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)


def test_a_stopped_run_ends_as_any_other(tmp_path):
    whole, halves = model_with(a=LORA), model_with(a=LORA)
    expected = [step.loss for step in train(whole, "a", examples(), CONFIG)]
    steps = train(halves, "a", examples(), CONFIG, folder=tmp_path)
    seen = [next(steps).loss for _ in range(2)]
    steps.close()
    again = model_with(a=LORA)
    assert seen + [step.loss for step in train(again, "a", examples(), CONFIG, folder=tmp_path)] == expected


# ── heads ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
def test_every_adapter_has_a_head_of_its_own(kind):
    model = model_with(kind=kind, a=LORA, b=halka.IA3())
    bare, other = logits(model, None), logits(model, "b")
    list(train(model, "a", examples(kind), CONFIG))
    assert torch.equal(logits(model, None), bare)
    assert torch.equal(logits(model, "b"), other)
    assert "classifier.weight" in model.adapter("a").state_dict()


@pytest.mark.parametrize("method", [halka.Prompt(length=3), halka.LoRA(rank=2), halka.Modules()])
def test_a_head_learns_at_the_rate_of_the_method_beside_it(method, tmp_path):
    model, config = classifier(), TrainConfig(steps=2, warmup=0, schedule="constant")
    model.add("a", method)
    seen: list[float] = []
    halka.fit(model, "a", examples(), config, folder=tmp_path, on_step=lambda step: seen.append(step.lr))
    assert seen == [method.lr] * 2
    assert read_card(tmp_path / "adapter").training["lr"] == method.lr
    assert not (tmp_path / "run.yaml").read_text().startswith("#"), "a head is no method that was chosen"
    halka.load(model, tmp_path / "adapter", name="again")
    assert next(train(model, "again", examples(), config)).lr == method.lr


def test_a_run_without_a_rate_keeps_the_one_that_it_began_with(tmp_path):
    """Heads made it lower before."""
    steps, resumed = [], TrainConfig(steps=3, warmup=0, schedule="constant")
    for config in (replace(resumed, lr=1e-3), resumed):
        model = classifier()
        model.add("a", halka.Prompt(length=3))
        running = train(model, "a", examples(), config, folder=tmp_path)
        steps.append(next(running))
        running.close()
    assert [(step.step, step.lr) for step in steps] == [(1, 1e-3), (2, 1e-3)]


def test_a_rate_that_was_set_is_no_default_of_before(tmp_path):
    for config in (TrainConfig(steps=3, lr=5e-3), TrainConfig(steps=3)):
        model = classifier()
        model.add("a", halka.Prompt(length=3))
        if config.lr is None:
            with pytest.raises(ValueError, match=r"lr was 0.005, is 0.01"):
                next(train(model, "a", examples(), config, folder=tmp_path))
        else:
            running = train(model, "a", examples(), config, folder=tmp_path)
            next(running)
            running.close()


@pytest.mark.parametrize(
    "method",
    [halka.Full(), halka.Modules(("classifier",)), halka.Joint((LORA, halka.Modules(("classifier",))))],
    ids=lambda method: method.name,
)
def test_a_method_that_trains_the_head_gets_no_other(method):
    model = classifier()
    assert model.add("a", method).method == method


@pytest.mark.parametrize("method", [LORA, halka.IA3(), halka.BitFit()], ids=lambda method: method.name)
def test_a_method_that_would_change_the_bases_own_head_is_refused(method):
    model, reason = classifier(), f"{method.name} would act on classifier, this base's head"
    for each in (replace(method, targets=("linear", "head")), replace(method, targets=("module:classifier",))):
        with pytest.raises(ValueError, match=reason):
            model.add("a", each)
    both = halka.Joint((replace(method, targets=("head",)), halka.Modules(("bert.pooler",))))
    with pytest.raises(ValueError, match="would act on classifier"):
        model.add("a", both)
    assert not model.adapters


def test_a_language_model_has_no_head_to_train():

    assert halka.adapt(tiny()).add("a", LORA).method == LORA


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_of_a_batch_use_their_own_adapters_and_heads(architecture, kind):
    model = model_with(architecture, kind, a=LORA, b=halka.IA3(), c=halka.LoRA(rank=3))
    names = ["a", None, "b", "c"]
    mixed = logits(model, names)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], logits(model, name)[row], rtol=1e-4, atol=1e-6)
    asked = examples(kind, count=4)
    together = dict(iter_answers(model, names, asked))
    assert together == {row: dict(iter_answers(model, name, asked))[row] for row, name in enumerate(names)}


def test_adapters_trained_together_learn_what_each_would_alone():
    alone, together = model_with(a=LORA, b=halka.IA3()), model_with(a=LORA, b=halka.IA3())
    jobs = [Job("a", examples(), CONFIG), Job("b", examples()[::-1], CONFIG)]
    expected = {job.name: [step.loss for step in train(alone, job.name, job.examples, CONFIG)] for job in jobs}
    told = list(train_many(together, jobs))
    for name, losses in expected.items():
        assert [steps[name].loss for steps in told] == pytest.approx(losses, rel=1e-4)


def test_fewer_labels_than_the_base_has_places():
    """The loss is that of a head as wide as the labels, and no answer is beyond them."""
    wide = classifier(labels=(*LABELS, "fourth"))
    wide.add("a", LORA, labels=["yes", "no"])
    data = examples(labels=("yes", "no"))
    items = as_tokens(wide, data, CONFIG, "a")
    labels = torch.tensor([item.label for item in items])
    texts = tuple(each.prompt[0].content for each in data)
    expected = torch.nn.functional.cross_entropy(logits(wide, "a", texts)[:, :2], labels)
    assert mean_loss(wide, "a", items) == pytest.approx(float(expected), rel=1e-5)
    assert {answer for _, answer in iter_answers(wide, "a", data)} <= {"yes", "no"}
    with pytest.raises(ValueError, match="'b' is to predict 5 labels, and this base has 4"):
        wide.add("b", LORA, labels=list("vwxyz"))
    for labels, why in (
        ("xy", "a list of names, not the text 'xy'"),
        (["x", "x"], "'x' occurs twice"),
        (["x"], "needs two labels or more"),
        ([0, 1], "a label is a non-empty text, not 0"),
    ):
        with pytest.raises(ValueError, match=why):
            wide.add("b", LORA, labels=labels)


# ── the folder ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_saved_adapter_comes_back_with_its_head_and_labels(architecture, kind, tmp_path):
    model = model_with(architecture, kind, a=LORA)
    halka.save(model, "a", tmp_path / "a")
    card = read_card(tmp_path / "a")
    assert card is not None
    assert (card.kind, tuple(card.labels)) == (kind, LABELS)
    again = classifier(architecture, kind)
    with torch.no_grad():
        for path in head_of(again.base):  # another head: it is no part of what tells bases apart
            again.base.get_submodule(path).weight.add_(1)
    halka.load(again, tmp_path / "a")
    assert torch.equal(logits(again, "a"), logits(model, "a"))
    assert again.labels_of("a") == LABELS


@pytest.mark.parametrize("labels", [("only",), ("x", "x")])
def test_what_a_view_trained_on_labels_that_nothing_can_learn_comes_back(labels, tmp_path):
    model = classifier(labels=labels)
    model.add("a", LORA)
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    halka.load(model, tmp_path / "a", name="again")
    assert torch.equal(logits(model, "again"), logits(model, "a"))
    assert model.labels_of("again") == labels


def test_an_adapter_of_other_labels_is_read_by_a_base_with_as_many_places_or_more(tmp_path):
    model = model_with(a=LORA)
    halka.save(model, "a", tmp_path / "a")
    wide = classifier(labels=tuple("vwxyz"))
    with torch.no_grad():
        for name, parameter in wide.base.bert.named_parameters():
            parameter.copy_(model.base.bert.get_parameter(name))
    halka.load(wide, tmp_path / "a")
    torch.testing.assert_close(logits(wide, "a")[:, :3], logits(model, "a"))
    assert wide.labels_of("a") == LABELS
    narrow = classifier(labels=("x", "y"))
    with torch.no_grad():
        for name, parameter in narrow.base.bert.named_parameters():
            parameter.copy_(model.base.bert.get_parameter(name))
    with pytest.raises(ValueError, match=r"predicts 3 labels \(good, bad, meh\), and this base 2 labels \(x, y\)"):
        halka.load(narrow, tmp_path / "a")
    assert not narrow.adapters


@pytest.mark.parametrize("method", [LORA, halka.Full()], ids=lambda method: method.name)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_an_adapter_of_fewer_labels_is_read_by_the_base_that_its_card_asks_for(architecture, method, tmp_path):
    wide = classifier(architecture, labels=(*LABELS, "fourth"))
    wide.add("a", method, labels=["yes", "no"])
    disturb(wide, "a")
    halka.save(wide, "a", tmp_path / "a")
    narrow = classifier(architecture, labels=("yes", "no"))
    inside = wide.base.base_model_prefix
    narrow.base.get_submodule(inside).load_state_dict(wide.base.get_submodule(inside).state_dict())
    for model in (narrow, wide):
        adapter = halka.load(model, tmp_path / "a", name="again")
        assert adapter.labels == ("yes", "no")
        torch.testing.assert_close(logits(model, "again")[:, :2], logits(wide, "a")[:, :2])
    if method is LORA:
        weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
        (head,) = (each for key, each in weights.items() if key.endswith(f"{label_rows(wide.base)[0]}"))
        assert len(head) == 2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own
@pytest.mark.parametrize("places", [["query"], ["query", "classifier"]])
def test_an_adapter_that_uses_the_bases_head_is_read_by_a_base_with_that_head(places, tmp_path):
    get_peft_model(classifier().base, LoraConfig(r=4, target_modules=places)).save_pretrained(tmp_path / "theirs")
    model = classifier()
    assert halka.load(model, tmp_path / "theirs", name="a").method.name == "lora"
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    again = classifier()
    halka.load(again, tmp_path / "a")
    assert torch.equal(logits(again, "a"), logits(model, "a"))
    other = classifier()
    with torch.no_grad():
        other.base.classifier.weight.normal_()
    with pytest.raises(ValueError, match="has no head of its own, and this base has another head than the one"):
        halka.load(other, tmp_path / "a")
    other.base.config.new_modules = ["classifier"]
    if "classifier" in places:
        with pytest.raises(ValueError, match=r"changes the base's head \(classifier.lora_A.*, and this base's is new"):
            halka.load(other, tmp_path / "theirs", name="b")
    assert not other.adapters


def test_an_adapter_of_another_kind_is_refused(tmp_path):
    model = model_with(kind=TAGS, a=LORA)
    halka.save(model, "a", tmp_path / "a")
    with pytest.raises(ValueError, match="is an adapter of a token-classification, and this base is a sequence-class"):
        halka.load(classifier(), tmp_path / "a")


# ── bases ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def encoder(tmp_path):
    """A folder with an encoder that has no head."""
    tokenizer = plain_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_a_head_that_is_not_there_begins_from_the_seed(encoder):
    def head(**options) -> torch.Tensor:
        base, _ = load_base(encoder, kind=CLASSES, labels=LABELS, dtype="float32", **options)
        assert [base.config.id2label[place] for place in range(3)] == list(LABELS)
        return base.classifier.weight

    before = torch.get_rng_state()
    assert torch.equal(head(), head(seed=0))
    assert not torch.equal(head(), head(seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_new_pooler_is_trained_with_the_head_and_kept_with_it(encoder, tmp_path):
    BertModel.from_pretrained(encoder, add_pooling_layer=False).save_pretrained(encoder)
    model = halka.adapt(*load_base(encoder, kind=CLASSES, labels=LABELS, dtype="float32"))
    assert model.head.method == halka.Modules(("head", "module:bert.pooler"))
    model.add("a", halka.LoRA(rank=4, alpha=8, targets=("attn.qv",)))
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    halka.load(model, tmp_path / "a", name="b")
    assert torch.equal(logits(model, "b"), logits(model, "a"))


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "llama"])
def test_an_adapter_with_its_head_is_saved_and_loaded(architecture, kind, tmp_path):
    """ModernBERT has a module `head` before its head."""
    model = classifier(architecture, kind)
    model.add("a", LORA)
    disturb(model, "a")
    halka.save(model, "a", tmp_path / "a")
    again = classifier(architecture, kind)
    halka.load(again, tmp_path / "a")
    assert torch.equal(logits(again, "a"), logits(model, "a"))


def test_the_head_of_a_trained_classifier_is_kept_or_set_aside(encoder, tmp_path):
    base, tokenizer = load_base(encoder, kind=CLASSES, labels=LABELS, seed=5)
    base.save_pretrained(encoder)
    again, _ = load_base(encoder)  # its configuration says what it is
    assert torch.equal(again.classifier.weight, base.classifier.weight)
    assert halka.adapt(again, tokenizer).labels == LABELS
    other, _ = load_base(encoder, kind=CLASSES, labels=["a", "b"])
    assert other.classifier.out_features == 2
    assert not torch.equal(other.classifier.weight, base.classifier.weight[:2])


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (("meh", "good", "bad"), [2, 0, 1]),
        (("x", "y", "z"), [0, 1, 2]),  # other names for the same places
        (("bad", "y", "z"), [1, 0, 2]),
        (("good", "y", "meh"), [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_a_trained_label_keeps_its_own_row_wherever_it_stands(architecture, labels, rows, tmp_path):
    model = classifier(architecture)
    for key in label_rows(model.base):
        torch.nn.init.normal_(model.base.get_parameter(key))
    model.base.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    other = halka.adapt(*load_base(tmp_path, labels=labels, dtype="float32", device="cpu"))
    assert other.labels == labels
    torch.testing.assert_close(logits(other, None), logits(model, None)[:, rows], rtol=0, atol=0)


@pytest.mark.parametrize("labels", [("meh", "good"), ("bad", "new", "good", "more")])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_a_trained_label_keeps_its_row_among_more_or_fewer(architecture, labels, tmp_path):
    model = classifier(architecture)
    for key in label_rows(model.base):
        torch.nn.init.normal_(model.base.get_parameter(key))
    model.base.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    other, fresh = (load_base(tmp_path, labels=labels, seed=seed, dtype="float32", device="cpu")[0] for seed in (0, 1))
    for key in label_rows(model.base):
        own, others, trained = (base.get_parameter(key) for base in (other, fresh, model.base))
        assert len(own) == len(labels)
        for row, label in enumerate(labels):
            if label in LABELS:
                assert torch.equal(own[row], trained[LABELS.index(label)])
            elif own.ndim == 2:
                assert not torch.equal(own[row], others[row])  # as the seed has it


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kind": "classification", "labels": LABELS}, "kind 'classification' is none of causal-lm"),
        ({"kind": "masked-lm", "labels": LABELS}, "a masked-lm has none"),
        ({"kind": CLASSES, "labels": ["a"]}, "needs two labels or more, not 1"),
        ({"kind": CLASSES, "labels": ["a", "a"]}, "'a' occurs twice"),
        ({"kind": CLASSES, "labels": "ab"}, "a list of names, not the text 'ab'"),
        ({"kind": CLASSES}, "have no head for labels: name the labels"),
        ({"kind": "masked-lm"}, "lack .* tensors of a BertForMaskedLM"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_the_reason(encoder, options, reason):
    with pytest.raises(ValueError, match=reason):
        load_base(encoder, **options)


# ── examples ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_tag_stands_at_its_words_first_token():
    tokenizer = plain_tokenizer()
    model = SimpleNamespace(tokenizer=tokenizer, labels_of=lambda name: ("O", "B-X", "I-X"))
    sentence = "Reset my password, ওগো!"
    tagged = [example(sentence, "O O B-X I-X")]
    (item,) = Tagging().encode(model, None, tagged, None, "cut").items
    texts = [tokenizer.decode([token]) for token in item.ids]
    firsts = [texts[place].strip() for place, word in enumerate(item.words) if word >= 0]
    assert item.labels == 4
    assert all(
        word.startswith(first) or "\ufffd" in first for word, first in zip(sentence.split(), firsts, strict=True)
    )
    assert item.tags == [0, 0, 1, 2]
    cut = Tagging().encode(model, None, tagged, 4, "cut")
    assert (cut.cut, len(cut.items[0].ids)) == (1, 4)
    assert 0 < cut.items[0].labels < 4


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        (CLASSES, example("Hello", "awful", "x:3"), "x:3: the label 'awful' is none of the 3 labels: good, bad, meh"),
        (TAGS, example("Hello you", "good awful"), "the label 'awful' is none"),
        (TAGS, example("Hello you", "good"), "2 words have 1 tags"),
        (CLASSES, replace(example("Hello", "good"), messages=example("Hello", "good").messages * 2), "one text or two"),
        (
            CLASSES,
            halka.Example((halka.Message("text", "Hello"),)),
            "raw texts are for a causal-lm, which learns to read",
        ),
    ],
)
def test_an_example_that_cannot_be_learned_is_refused_by_name(kind, given, reason):
    model = model_with(kind=kind, a=LORA)
    with pytest.raises(ValueError, match=reason):
        as_tokens(model, [*examples(kind), given], CONFIG, "a")


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
def test_the_answer_is_learned_and_not_the_first_that_is_accepted(kind):
    model = model_with(kind=kind, a=LORA)
    given = replace(example("Hello", "bad"), references=("good", "bad"))
    (item,) = as_tokens(model, [given], CONFIG, "a")
    assert item == as_tokens(model, [example("Hello", "bad")], CONFIG, "a")[0]
    (first,) = as_tokens(model, [replace(given, messages=given.prompt)], CONFIG, "a")
    assert first == as_tokens(model, [example("Hello", "good")], CONFIG, "a")[0]


def test_blanks_around_a_label_are_none_of_it():
    rows = [example("Hello", " good"), example("Bye", "bad "), example("Well", "good")]
    assert classes_in(rows) == ("bad", "good")
    model = model_with(kind=CLASSES, a=LORA)
    assert [item.label for item in as_tokens(model, rows, CONFIG, "a")] == [
        LABELS.index(it) for it in ("good", "bad", "good")
    ]


def test_blanks_around_a_base_s_label_are_none_of_it(tmp_path):
    model = classifier(labels=(" good", "bad "))
    model.add("a", LORA)
    rows = [example("Hello", "bad"), example("Bye", "good")]
    assert [item.label for item in as_tokens(model, rows, CONFIG, "a")] == [1, 0]
    halka.save(model, "a", tmp_path / "a")
    halka.load(model, tmp_path / "a", name="b")
    assert model.labels_of("b") == (" good", "bad ")


@pytest.mark.parametrize(("labels", "reason"), [(("only",), "two labels or more, not 1"), (("x", "x"), "occurs twice")])
def test_a_base_whose_labels_cannot_be_learned_trains_none(labels, reason):
    model = classifier(labels=labels)  # a reward's head, say, which others train by a view
    model.add("a", LORA)
    with pytest.raises(halka.HalkaError, match=rf"{reason}.*load_base\(kind=…, labels=\[…\]\)"):
        as_tokens(model, [example("Hello", labels[0])], CONFIG, "a")


@pytest.mark.parametrize("pad", [None, -1, 10_000])
def test_a_causal_classifier_without_a_padding_token_is_refused(pad):
    model = classifier("llama")
    model.base.config.pad_token_id = pad
    with pytest.raises(halka.HalkaError, match=r"base\.config\.pad_token_id = tokenizer\.pad_token_id"):
        halka.adapt(model.base, model.tokenizer)
    assert halka.adapt(classifier("llama", TAGS).base).labels == LABELS


def test_two_texts_are_told_apart_where_the_base_asks():
    model = model_with(a=LORA)
    pair = replace(
        example("", "good"), messages=(*example("Hello", "").prompt, *example("What is it?", "good").messages)
    )
    (item,) = as_tokens(model, [pair], CONFIG, "a")
    theirs = model.tokenizer("Hello", "What is it?")
    assert item.ids == theirs["input_ids"]
    assert item.types == theirs.get("token_type_ids", [])
    assert objective_of(model).collate([item, item], 0).inputs.keys() == {*theirs.keys()}


def test_a_text_over_the_context_is_cut_when_it_is_answered():
    model = model_with(a=LORA)
    long = example(" ".join(TEXTS * 20), "good")
    assert dict(iter_answers(model, "a", [long]))[0] in LABELS
    with pytest.warns(UserWarning, match="1 are cut to 64 tokens"):
        assert len(as_tokens(model, [long], CONFIG, "a")[0]) == 64


@pytest.mark.parametrize("kind", [CLASSES, TAGS])
def test_what_special_tokens_alone_make_too_long_is_no_example(kind):
    model = model_with(kind=kind, a=LORA)
    template = TemplateProcessing(single="</s> $A </s> </s>", special_tokens=[("</s>", model.tokenizer.eos_token_id)])
    model.tokenizer.backend_tokenizer.post_processor = template
    with pytest.raises(DataError, match="it cannot be cut to max_length 2"):
        objective_of(model).encode(model, "a", examples(kind), 2, "cut")


# ── sequence to sequence ────────────────────────────────────────────────────────────────────────────────────────────


def translator(method=LORA):
    tokenizer = plain_tokenizer()
    model = halka.adapt(tiny("t5", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id), tokenizer)
    model.add("a", method)
    disturb(model, "a")
    return model


def test_tools_are_not_for_a_base_that_has_no_chat_template():
    call = Message("assistant", "", calls=(ToolCall("clock"),))
    for answered in ((call,), (call, Message("tool", "12"), Message("assistant", "Noon."))):
        with pytest.raises(DataError, match="tools need a chat template, which a sequence-to-sequence base has not"):
            as_tokens(translator(), [Example((Message("user", "What time?"), *answered))], CONFIG, "a")


PAIRS = [example("What is the capital?", "Paris."), example("Yes. No.", "Perhaps, 42."), example("Reset", "Open it.")]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own
def test_a_sequence_to_sequence_loss_and_its_gradients_are_those_of_transformers_and_peft():
    """Of the same LoRA in peft, at every layer of both stacks and the attention across."""
    model = translator()
    objective = objective_of(model)
    items = as_tokens(model, PAIRS, CONFIG, "a")
    batch, count = objective.collate(items, pad_id(model)), sum(item.labels for item in items)
    with model.use("a"):
        theirs = model.base(**batch.inputs, labels=batch.labels).loss
        summed = objective.loss(model, "a", objective.outputs(model, batch), batch.labels)
        (summed / count).backward()
    assert count == int((batch.labels != IGNORE_INDEX).sum()) == sum(len(item.answer) for item in items)
    torch.testing.assert_close(summed / count, theirs)

    own = dict(model.adapter("a").named_parameters())
    paths = sorted({key.rpartition(".lora_")[0] for key in own})
    other = get_peft_model(
        tiny("t5", vocab_size=len(model.tokenizer)),
        LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, lora_alpha=8, target_modules=paths),
    ).eval()
    parameters = dict(other.named_parameters())
    with torch.no_grad():
        for key, tensor in own.items():
            parameters[f"base_model.model.{key}.default.weight"].copy_(tensor)
    loss = other(**batch.inputs, labels=batch.labels).loss
    loss.backward()
    torch.testing.assert_close(loss, theirs)
    for key, tensor in own.items():
        gradient = parameters[f"base_model.model.{key}.default.weight"].grad
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-3, atol=1e-7)


def test_sequence_to_sequence_learns_the_answer_and_not_the_first_that_is_accepted():
    model = translator()
    given = replace(PAIRS[0], references=("The city of Paris.", "Paris."))
    assert as_tokens(model, [given], CONFIG, "a") == as_tokens(model, [PAIRS[0]], CONFIG, "a")


def test_sequence_to_sequence_learns_and_answers():
    model = translator(halka.Full())
    steps = list(train(model, "a", PAIRS, replace(CONFIG, steps=60, lr=3e-3)))
    assert steps[-1].loss < steps[0].loss / 5
    assert dict(iter_answers(model, "a", PAIRS, max_new_tokens=12)) == {i: p.answers[0] for i, p in enumerate(PAIRS)}


# ── peft ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own
@pytest.mark.parametrize("kind", [CLASSES, TAGS])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_loads_a_folder_with_its_head_and_computes_the_same(architecture, kind, tmp_path):
    model = model_with(architecture, kind, a=LORA)
    halka.save(model, "a", tmp_path / "a")
    expected = logits(model, "a")
    given = model.tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    other = PeftModel.from_pretrained(classifier(architecture, kind).base, tmp_path / "a").eval()
    assert other.peft_config["default"].task_type == {CLASSES: "SEQ_CLS", TAGS: "TOKEN_CLS"}[kind]
    with torch.no_grad():
        torch.testing.assert_close(other(**given).logits, expected)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # peft's own
def test_a_classifiers_folder_by_peft_is_read(tmp_path):
    other = get_peft_model(classifier().base, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]))
    with torch.no_grad():
        for parameter in other.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    other.save_pretrained(tmp_path / "theirs")
    model = classifier()
    halka.load(model, tmp_path / "theirs", name="a")
    given = model.tokenizer(list(TEXTS), return_tensors="pt", padding=True)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, "a"), other.eval()(**given).logits)
