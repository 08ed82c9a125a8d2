"""Others' tools with adapters, offline: Trainer, pipelines, TRL, lm-eval. Each gives the numbers that Halka gives."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import halka
from classifiers import TEXTS, classifier, example
from commands import halka as halka_command
from contract import Base, disturb, weights_of
from halka.core import AdaptedModel, Method
from halka.data.batches import collate, plan
from halka.data.tokens import Tokens
from halka.evaluation.generation import iter_answers
from halka.training import TrainConfig, mean_loss
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer
from training_for_tests import items, model_for, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:.*`use_cpu`"),
]
QUIET = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Data sets are kept in a folder of the test's own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))


def speaking(method: Method | None = None, name: str = "a") -> AdaptedModel:
    """A tiny base that reads and writes what a real tokenizer makes of text, with an adapter."""
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    model.add(name, method or halka.LoRA(rank=4))
    return model


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# ── transformers ────────────────────────────────────────────────────────────────────────────────────────────────────


class Ordered:
    """Trainer's data in the order in which `halka.train` reads them."""

    def __init__(self, data: list[Tokens], batch_size: int, epochs: int):
        lengths = [len(item.ids) for item in data]
        self.rows = [
            data[i]
            for epoch in range(epochs)
            for batch in plan(lengths, seed=0, epoch=epoch, batch_size=batch_size)
            for i in batch
        ]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Tokens:
        return self.rows[i]


def trainer_for(model: AdaptedModel, data: list[Tokens], folder: Path, **options):
    from transformers import Trainer, TrainingArguments

    settings = {"max_steps": 8, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 4}
    settings |= {"lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0}
    settings |= {"optim": "adamw_torch_fused", "train_sampling_strategy": "sequential", **QUIET, **options}
    return Trainer(
        halka.view(model, "a"),
        TrainingArguments(str(folder), **settings),
        data_collator=lambda rows: vars(collate(rows, pad_id=0)),
        train_dataset=Ordered(data, 2, 3),
    )


@pytest.mark.parametrize(
    "method", [halka.LoRA(rank=4, alpha=8), halka.Prefix(length=4), halka.Full()], ids=lambda m: m.name
)
def test_trainer_teaches_what_train_teaches_saves_and_resumes(method, tmp_path):
    data = items(12)
    ours, theirs = model_for(method), model_for(method)
    lr = 1e-2 if method.name != "full" else 1e-3
    config = TrainConfig(steps=8, batch_size=2, schedule="constant", warmup=0, lr=lr)
    expected = [step.loss for step in halka.train(ours, "a", data, config)]
    before = weights_of(theirs.base)
    trainer = trainer_for(theirs, data, tmp_path, learning_rate=lr)
    trainer.train()
    assert losses(trainer) == pytest.approx(expected, abs=1e-4)
    for key, value in weights(ours).items():
        torch.testing.assert_close(weights(theirs)[key], value, rtol=0, atol=2e-5)
    assert all(torch.equal(before[name], parameter) for name, parameter in theirs.base.named_parameters())

    again = model_for(method)
    trainer_for(again, data, tmp_path, learning_rate=lr).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert all(torch.equal(value, weights(again)[key]) for key, value in weights(theirs).items())
    trainer.save_model()  # beside the checkpoints
    fresh = halka.adapt(tiny())
    halka.load(fresh, tmp_path, name="b")
    assert all(torch.equal(value, weights(fresh, "b")[key]) for key, value in weights(theirs).items())


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_trainer_takes_a_packed_base(form, tmp_path):
    data = items(6)
    ours, theirs = (halka.adapt(Base(quantize=form).build()) for _ in range(2))
    for model in (ours, theirs):
        model.add("a", halka.LoRA(rank=4))
    config = TrainConfig(steps=3, batch_size=2, schedule="constant", warmup=0, lr=1e-2)
    expected = [step.loss for step in halka.train(ours, "a", data, config)]
    trainer = trainer_for(theirs, data, tmp_path, max_steps=3, save_strategy="no")
    trainer.train()
    assert losses(trainer) == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*`gradient_checkpointing`")
def test_trainer_with_checkpoints_accumulation_and_evaluation(tmp_path):
    """What is computed once more in backward, and what Trainer puts before a view's forward for bf16."""
    data = items(12)
    plain, checked = model_for(), model_for()
    trainer_for(plain, data, tmp_path / "plain", gradient_accumulation_steps=2, max_steps=4).train()
    trainer = trainer_for(
        checked, data, tmp_path / "checked", gradient_accumulation_steps=2, max_steps=4, activation_checkpointing=True
    )
    trainer.train()
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(checked)[key], value, rtol=0, atol=2e-5)
    bare = trainer.evaluate(Ordered(data, 2, 1))["eval_loss"]
    disturb(checked, "a", by=0.3)
    assert trainer.evaluate(Ordered(data, 2, 1))["eval_loss"] != pytest.approx(bare, abs=1e-3)
    mixed = trainer_for(model_for(), data, tmp_path / "mixed", bf16=True, max_steps=2)
    mixed.train()
    assert losses(mixed) == pytest.approx(losses(trainer_after(plain, data, tmp_path)), abs=0.1)


def trainer_after(model: AdaptedModel, data: list[Tokens], folder: Path):
    model.remove("a")
    model.add("a", halka.LoRA(rank=4))
    trainer = trainer_for(model, data, folder / "after", max_steps=2)
    trainer.train()
    return trainer


def test_trainer_leaves_no_dropout_behind(tmp_path):
    model = model_for(halka.LoRA(rank=4, dropout=0.5))
    data = items(4)
    trainer_for(model, data, tmp_path, max_steps=2, save_strategy="no").train()
    assert mean_loss(model, "a", data) == mean_loss(model, "a", data)


@pytest.mark.parametrize("labels", [("no", "yes", "perhaps"), ("no", "yes")])
def test_pipeline_names_the_adapters_labels(labels):
    from transformers import pipeline

    model = classifier()
    model.add("a", halka.LoRA(rank=4), labels=labels)
    disturb(model, "a", by=0.3)
    made = pipeline("text-classification", model=halka.view(model, "a"), tokenizer=model.tokenizer)
    made_here = dict(iter_answers(model, "a", [example(text, labels[0]) for text in TEXTS]))
    answers = [made_here[place] for place in range(len(TEXTS))]
    assert [each["label"] for each in made(list(TEXTS))] == answers
    assert {each["label"] for each in made(TEXTS[0], top_k=None)} == {*labels}


def test_pipeline_writes_what_generate_writes():
    from transformers import pipeline

    model = speaking()
    disturb(model, "a", by=0.2)
    texts = ["What is the capital of", "Open"]
    made = pipeline("text-generation", model=halka.view(model, "a"), tokenizer=model.tokenizer)
    got = [each[0]["generated_text"] for each in made(texts, max_new_tokens=6, do_sample=False)]
    for text, whole in zip(texts, got, strict=True):
        ids = model.tokenizer(text, return_tensors="pt").input_ids
        with model.use("a"):
            expected = model.base.generate(ids, max_new_tokens=6, do_sample=False)
        assert whole == text + model.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
        with model.use(None):
            assert not torch.equal(model.base.generate(ids, max_new_tokens=6, do_sample=False), expected)


# ── TRL ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

TRL = {**QUIET, "per_device_train_batch_size": 2, "max_steps": 6, "learning_rate": 2e-2, "bf16": False}
TRL |= {"save_strategy": "no", "lr_scheduler_type": "constant"}
CHAT = {
    "prompt": [{"role": "user", "content": "What is the capital of France?"}],
    "completion": [{"role": "assistant", "content": "Paris."}],
}
PAIR = {"prompt": "What is the capital?", "chosen": " Paris.", "rejected": " No."}


def from_rows(row: dict, count: int = 8):
    from datasets import Dataset

    return Dataset.from_list([row] * count)


@pytest.mark.parametrize(
    "method", [halka.LoRA(rank=4, alpha=8), halka.Prefix(length=4), halka.Full()], ids=lambda m: m.name
)
def test_sft_trainer_learns_and_leaves_the_base(method, tmp_path):
    from trl import SFTConfig, SFTTrainer

    model = speaking(method)
    before = weights_of(model.base)
    config = SFTConfig(str(tmp_path), **TRL)
    trainer = SFTTrainer(
        halka.view(model, "a"), config, train_dataset=from_rows(CHAT), processing_class=model.tokenizer
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 0.05
    assert all(torch.equal(before[name], parameter) for name, parameter in model.base.named_parameters())

    ours = speaking(method)  # the first loss is that of the same tokens
    row = trainer.train_dataset[0]
    with torch.no_grad(), ours.use("a"):
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        assert losses(trainer)[0] == pytest.approx(float(ours.base(ids, labels=labels).loss), abs=1e-4)


def test_dpo_trainer_prefers_what_is_chosen_over_the_bare_base(tmp_path):
    from trl import DPOConfig, DPOTrainer

    model = speaking()
    before = weights_of(model.base)
    trainer = DPOTrainer(
        halka.view(model, "a"),
        ref_model=halka.view(model, None),
        args=DPOConfig(str(tmp_path), **TRL),
        train_dataset=from_rows(PAIR),
        processing_class=model.tokenizer,
    )
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.6931, abs=1e-4)  # at the start it is its own reference
    assert losses(trainer)[-1] < 0.68
    assert all(torch.equal(before[name], parameter) for name, parameter in model.base.named_parameters())


def test_an_adapter_of_the_head_is_refused_where_trl_would_pass_it_by(tmp_path):
    from trl import SFTConfig, SFTTrainer

    model = speaking(halka.LoRA(rank=4, targets=("attn.q", "head")))
    config = SFTConfig(str(tmp_path), **TRL)
    trainer = SFTTrainer(
        halka.view(model, "a"), config, train_dataset=from_rows(CHAT), processing_class=model.tokenizer
    )
    with pytest.raises(ValueError, match="acts on the head, which this tool bypasses"):
        trainer.train()


# ── lm-eval ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """A base, an adapter and tasks, each in its folder."""
    model = speaking()
    disturb(model, "a", by=0.2)
    base, adapter, tasks = tmp_path / "base", tmp_path / "adapter", tmp_path / "tasks"
    model.base.save_pretrained(base)
    model.tokenizer.save_pretrained(base)
    halka.save(model, "a", adapter)
    tasks.mkdir()
    rows = [
        {
            "question": f"What is {n}",
            "choices": [" one", " the capital", " Paris."],
            "answer": n % 3,
            "text": "Yes. No.",
        }
        for n in range(7)
    ]
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tasks / "rows.jsonl")}}}
    for name, task in TASKS.items():  # JSON is YAML
        (tasks / f"{name}.yaml").write_text(json.dumps({"task": f"halka_{name}", "test_split": "test", **data, **task}))
    return {"base": base, "adapter": adapter, "tasks": tasks}


def scores(model: str, places: dict[str, Path], batch_size: int = 3, **arguments) -> dict:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(places["tasks"]), include_defaults=False)
    names = [f"halka_{name}" for name in TASKS]
    found = simple_evaluate(
        model, arguments, tasks=names, task_manager=manager, batch_size=batch_size, bootstrap_iters=0, log_samples=True
    )
    answers = {task: [sample["filtered_resps"] for sample in each] for task, each in found["samples"].items()}
    return {"results": found["results"], "answers": answers}


def flat(scored: dict) -> list:
    """Every number and every text that was answered."""
    found = []
    for each in scored["answers"].values():
        for answer in each:
            for part in answer:
                found += list(part) if isinstance(part, list | tuple) else [part]
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore:.*pad_token_id")
def test_lm_eval_scores_an_adapter_as_it_scores_a_peft_model(places):
    import halka.interop.lm_eval  # noqa: F401

    paths = {"base": str(places["base"]), "dtype": "float32", "device": "cpu"}
    ours = scores("halka", places, adapter=str(places["adapter"]), **paths)
    theirs = scores("hf", places, pretrained=paths["base"], peft=str(places["adapter"]), dtype="float32", device="cpu")
    bare = scores("halka", places, **paths)
    for got, expected in zip(flat(ours), flat(theirs), strict=True):
        assert got == (pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected)
    assert flat(bare) != flat(ours)
    one = scores("halka", places, batch_size=1, adapter=str(places["adapter"]), **paths)
    for got, expected in zip(flat(one), flat(ours), strict=True):
        assert got == (pytest.approx(expected, abs=1e-3) if isinstance(expected, float) else expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_eval_takes_a_model_that_is_there_with_an_adapter_of_any_kind():
    from lm_eval.api.instance import Instance

    from halka.interop.lm_eval import HalkaLM

    model = speaking(halka.Prefix(length=4))
    lm = HalkaLM(model, "a", batch_size=2)
    assert lm.max_length == 124  # the virtual tokens have their positions
    pairs = [("What is", " the capital"), ("Open", " the settings and choose"), ("No", ".")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    for (before, after), (got, greedy) in zip(pairs, lm.loglikelihood(requests), strict=True):
        start, whole = (model.tokenizer(text, return_tensors="pt").input_ids for text in (before, before + after))
        with torch.no_grad(), model.use("a"):
            logits = model.base(whole).logits[0, start.shape[1] - 1 : -1].log_softmax(-1)
        target = whole[0, start.shape[1] :]
        assert got == pytest.approx(float(logits.gather(1, target[:, None]).sum()), abs=1e-4)
        assert greedy == bool((logits.argmax(-1) == target).all())
    with pytest.raises(ValueError, match="needs its tokenizer"):
        HalkaLM(halka.adapt(tiny()))
    loading = {"quantize": "nf4", "dtype": "float32", "device": "cpu", "allow_other_base": True, "allow_pickle": True}
    for option, value in loading.items():
        with pytest.raises(halka.HalkaError, match=f"{option} is for a base or an adapter as it is loaded"):
            HalkaLM(model, "a", **{option: value})
    with pytest.raises(halka.HalkaError, match="which a sequence-classification does not predict"):
        HalkaLM(classifier())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"adaptor": "x"}, "'adaptor' is no option of a model that Halka loads: did you mean adapter?"),
        ({"load_in_4bit": True}, "'load_in_4bit' is no option of a model that Halka loads: did you mean quantize?"),
        ({"zzz": True}, "'zzz' is no option of a model that Halka loads: there are adapter, "),
        ({"peft": "x"}, "'peft' is no option of a model that Halka loads"),
    ],
)
def test_lm_eval_refuses_what_would_have_no_effect(options, told):
    from halka.interop.lm_eval import HalkaLM

    with pytest.raises(ValueError, match=re.escape(told)):
        HalkaLM(speaking(), "a", **options)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_eval_takes_a_packed_base(places):
    from halka.core import quantization_of
    from halka.interop.lm_eval import HalkaLM

    with pytest.warns(UserWarning, match="in full precision, which is quantised to int8 here"):
        lm = HalkaLM(str(places["base"]), str(places["adapter"]), quantize="int8", dtype="float32", device="cpu")
    assert quantization_of(lm.model) == "int8"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lm_eval_takes_the_base_that_the_adapter_names(places):
    from halka.interop.lm_eval import HalkaLM

    adapter, card = str(places["adapter"]), places["adapter"] / "halka.json"
    with pytest.raises(halka.HalkaError, match="there is no base, and there is no adapter to name one: give base=NAME"):
        HalkaLM()
    with pytest.raises(halka.HalkaError, match=r"there is no base, and .*adapter does not say which: give base=NAME"):
        HalkaLM(adapter=adapter)
    content = json.loads(card.read_text())
    card.write_text(json.dumps(content | {"base": content["base"] | {"name": str(places["base"])}}))
    lm = HalkaLM(adapter=adapter, dtype="float32", device="cpu")
    assert lm.model.config.name_or_path == str(places["base"])


def test_the_command_scores_an_adapter(places, tmp_path, monkeypatch):
    import lm_eval.tasks

    own_tasks_unread = partial(lm_eval.tasks.TaskManager, include_defaults=False)  # some 13,000 files
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own_tasks_unread)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = f"base={places['base']},adapter={places['adapter']},dtype=float32"
    command = f"lm-eval --model_args {names} --tasks halka_choices --include_path {places['tasks']}"
    printed = halka_command(f"{command} --batch_size 2 --output_path {tmp_path / 'out'}").stdout
    assert "halka_choices" in printed
    (result,) = (tmp_path / "out").rglob("results_*.json")
    assert 0 <= json.loads(result.read_text())["results"]["halka_choices"]["acc,none"] <= 1


def test_without_lm_eval_the_command_says_what_to_install(monkeypatch, capsys):
    import sys

    from halka.cli import main

    monkeypatch.setitem(sys.modules, "lm_eval.api.registry", None)
    monkeypatch.delitem(sys.modules, "halka.interop.lm_eval", raising=False)
    monkeypatch.setattr(sys, "argv", ["halka", "lm-eval", "--tasks", "x"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "pip install 'halka[lm-eval]'" in capsys.readouterr().err
