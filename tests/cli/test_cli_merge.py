"""`halka merge`: what it tells, refuses and writes, on a tiny base."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import halka
from classifiers import CLASSES, TAGS, classifier, examples
from commands import halka as command_line
from contract import disturb, ids
from halka.cli.merge import scored
from halka.data.metric import Metric
from halka.data.task import Task
from halka.storage.card import read_card
from kinds import bare
from tiny import tiny
from tokenizers_for_tests import plain_tokenizer


@pytest.fixture(scope="module")
def adapters_and_task(base_folder, tmp_path_factory) -> Path:
    """A folder with a base, two LoRAs, a prefix and a task."""
    folder = tmp_path_factory.mktemp("adapters_and_task")
    (folder / "base").symlink_to(base_folder)
    model = halka.adapt(*halka.load_base(folder / "base", dtype="float32", device="cpu"))
    for name, method in {"a": halka.LoRA(rank=3), "b": halka.LoRA(rank=5), "prefix": halka.Prefix(length=3)}.items():
        model.add(name, method)
        disturb(model, name, seed=len(name) + ord(name[0]), by=0.1)
        halka.save(model, name, folder / name, task="sums", training={"lr": 0.1}, measurements={"loss": 2.0})
    rows = [{"prompt": f"What is {a} plus {b}?", "completion": str(a + b)} for a in range(3) for b in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text("train: rows.jsonl\ntest: 0.4\nmetrics: exact_match\nmax_new_tokens: 2\n")
    (folder / "prose.txt").write_text("What is the capital of France? " * 20)
    return folder


@pytest.fixture
def run(adapters_and_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in adapters_and_task.iterdir():
        (tmp_path / path.name).symlink_to(path)

    return lambda command, code=0: command_line(f"merge {command} --base base", code=code)


def test_it_tells_what_merging_costs(run):
    told = json.loads(run("a --dtype float32 --probes prose.txt --json").stdout)
    assert told["adapters"] == {"a": 1.0}
    assert told["error"]["dtype"] == "float32"
    assert told["error"]["relative"] == told["error"]["error"]["kl"] / told["error"]["effect"]["kl"] < 1e-6
    shown = run("a").stdout
    for words in ("merged and unmerged", "rounding to bfloat16, unmerged", "merging changes"):
        assert words in shown
    assert "written" not in shown


def test_it_writes_the_merged_model_and_refuses_past_the_limit_unless_forced(run):
    told = run("a --limit 0 --into merged", code=2)
    assert "past the limit of 0.0%" in told.stderr
    assert not Path("merged").exists()
    assert "written to merged" in run("a --limit 0 --force --into merged").stdout
    model = halka.adapt(*halka.load_base("base", device="cpu"))
    halka.load(model, "a")
    model.merge("a")
    with torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained("merged", dtype=torch.bfloat16).eval()(ids()).logits
    assert torch.equal(again, bare(model))


@pytest.mark.parametrize("how", ["--to-dtype float16", "--as gguf --to-dtype q8_0"])
def test_the_error_and_its_limit_are_those_of_the_precision_that_is_written(how, run):
    to = "x.gguf" if "gguf" in how else "x"
    told = json.loads(run(f"a --dtype float32 {how} --into {to} --json --force").stdout)["error"]
    assert told["dtype"] == how.split()[-1]
    assert told["relative"] > 1e-7 > json.loads(run("a --dtype float32 --json").stdout)["error"]["relative"]
    Path("before").mkdir()
    between = told["relative"] / 2
    assert "past the limit" in run(f"a --dtype float32 {how} --into before/{to} --limit {between}", code=2).stderr
    assert not any(Path("before").iterdir())
    assert f"rounding to {told['dtype']}" in run(f"a --dtype float32 {how} --into before/{to} --limit 1").stdout


@pytest.mark.parametrize(
    ("form", "made_there"),
    [("gguf", "x.gguf"), ("lora-gguf", "x.gguf"), ("peft", "x/adapter_config.json"), ("vllm", "x/adapter_config.json")],
)
def test_it_writes_every_form(form, made_there, run):
    told = json.loads(run(f"a --into {Path(made_there).parts[0]} --as {form} --dtype float32 --json").stdout)
    assert Path(made_there).is_file()
    assert ("error" in told) == (form == "gguf")
    assert told["written"] == Path(made_there).parts[0]
    if form in ("peft", "vllm"):
        card = read_card(Path("x"))
        assert (card.task, card.training, card.measurements) == ("sums", {"lr": 0.1}, {"loss": 2.0})


def test_it_never_writes_over_an_adapter_that_it_reads_and_over_others_where_forced(run, adapters_and_task):
    before = {path: path.read_bytes() for name in ("a", "b") for path in (adapters_and_task / name).iterdir()}
    for force in ("", "--force"):
        told = run(f"a=a two=b --combine cat --into b --as peft {force}", code=2)
        assert "--into b is the folder of two, which is read: choose another" in told.stderr
    assert "b holds an adapter, and does not say whether it was trained" in run("a --into b --as peft", code=2).stderr
    assert {path: path.read_bytes() for path in before} == before
    run("a --into x --as peft")
    run("b --into x --as peft --force")
    assert json.loads(Path("x", "adapter_config.json").read_text())["r"] == 5


def test_vllm_gets_the_rank_that_it_takes_where_asked(run):
    for folder, option, rank in (("x", "", 3), ("y", "--pad-rank", 8)):
        run(f"a --into {folder} --as vllm --dtype float32 {option}")
        assert json.loads(Path(folder, "adapter_config.json").read_text())["r"] == rank


def test_several_become_one_and_all_are_judged_on_the_tasks(run):
    told = json.loads(
        run(
            "a one=b --combine cat --weights 0.5,-2 --task sums.yaml --into both --as peft --dtype float32 --json"
        ).stdout
    )
    assert told["adapters"] == {"a": 0.5, "one": -2.0}
    assert [row["adapter"] for row in told["tasks"]] == [None, "a", "one", "combined"]
    assert {row["examples"] for row in told["tasks"]} == {4}
    assert len({row["loss"] for row in told["tasks"]}) == 4
    training = {"combined": {"a": 0.5, "one": -2.0}, "by": "cat", "density": None, "rank": None, "seed": 0}
    assert read_card(Path("both")).training == training
    model = halka.adapt(*halka.load_base("base", dtype="float32", device="cpu"))
    for name in ("a", "b", "both"):
        halka.load(model, name)
    halka.combine(model, {"a": 0.5, "b": -2.0}, "cat", name="by hand")
    for key, tensor in model.adapters["by hand"].state_dict().items():
        assert torch.equal(tensor, model.adapters["both"].state_dict()[key])
    shown = run("a b --combine ties_svd --density 0.5 --task sums.yaml --examples 2").stdout
    assert "the bare base" in shown
    assert re.search(r"bare base +2 ", shown)


def test_an_adapter_of_a_store_is_judged_as_its_folder_is(run, tmp_path):
    model = halka.adapt(*halka.load_base("base", dtype="float32", device="cpu"))
    halka.load(model, "a")
    halka.AdapterStore(tmp_path / "store").save(model, "a")
    stored, given = (
        json.loads(run(f"a {how} --task sums.yaml --dtype float32 --json").stdout)["tasks"]
        for how in ("--store store", "")
    )
    assert [row["adapter"] for row in stored] == [None, "a"]
    assert stored == given


@pytest.mark.filterwarnings("ignore:.* accepted answers are longer")
@pytest.mark.parametrize("kind", [CLASSES, TAGS, "seq2seq-lm"])
def test_bases_of_other_kinds_are_judged_by_what_they_learn(kind):
    tokenizer = plain_tokenizer()
    if kind == "seq2seq-lm":
        model = halka.adapt(tiny("t5", vocab_size=len(tokenizer)), tokenizer)
        metric = "exact_match"
    else:
        model = classifier(kind=kind)
        metric = "accuracy" if kind == CLASSES else "tag_accuracy"
    model.add("a", halka.LoRA(rank=4))
    disturb(model, "a", by=0.1)
    test = tuple(examples(kind))
    rows = scored(model, [None, "a"], [Task("texts", (), (), test, (metric,), metric, max_new_tokens=2)], 4, 0)
    assert [row["adapter"] for row in rows] == [None, "a"]
    assert all(0 < row["loss"] < 20 for row in rows)
    assert rows[0]["loss"] != rows[1]["loss"]


def test_a_task_is_judged_by_a_metric_of_its_own():
    model = classifier()
    own = Metric.mean("mine", "one", lambda prediction, references: 1.0)
    (row,) = scored(model, [None], [Task("texts", (), (), tuple(examples()), (own,), "mine")], 2, 0)
    assert (row["metric"], row["score"].value) == ("mine", 1.0)


@pytest.mark.parametrize(
    ("into", "why"),
    [
        ("x --as gguf", "is not the path of a .gguf file"),
        ("prose.txt", "prose.txt is a file: choose another folder"),
        ("prose.txt/x", "prose.txt is a file: choose another path"),
        ("base", "base is what the base was loaded from"),
        ("b", "b exists and holds adapter_config.json, which no export wrote"),
        ("base --as peft", "which is no part of an adapter"),
        ("/", "which no export wrote"),
        ("there.gguf --as gguf", "there.gguf exists, and a GGUF file does not say who wrote it"),
        ("x --to-dtype q8_0", "dtype 'q8_0' is none of"),
        ("x --as peft --to-dtype float16", "keeps the adapter as it is"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_the_base_is_loaded(into, why, run):
    Path("there.gguf").touch()
    stderr = run(f"a --into {into}", code=2).stderr
    assert why in stderr
    assert "loading" not in stderr


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("a b", "--combine METHOD combines several adapters"),
        ("a --combine linear", "give it with two or more, and only then"),
        ("a b --combine linear", "need equal ranks"),
        ("a b --combine cat --weights 1", "--weights has 1 for 2 adapters"),
        ("a b --combine cat --weights one,two", "are no numbers with commas between"),
        ("a --as gguf", "give --into PATH with them"),
        ("prefix", "prefix acts on memory, which is no weight: not mergeable"),
        ("nobody", "there is no folder nobody"),
    ],
)
def test_what_is_wrong_is_said(command, why, run):
    assert why in run(command, code=2).stderr
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("a b --combine mean", "there is no combination 'mean'"),
        ("a b --combine cat --weights nan,1 --into x", "the weight of 'a' is nan"),
        ("a b --combine ties --density 2", "above 0 and at most 1, not 2.0"),
        ("a b --combine linear --rank 2", "the rank of linear follows from its sources"),
        ("a --task untested.yaml", "--task: untested has no test examples to score on"),
    ],
)
def test_what_needs_no_base_to_be_wrong_is_said_before_it_is_loaded(command, why, run):
    Path("untested.yaml").write_text("train: rows.jsonl\nmetrics: exact_match\n")
    stderr = run(command, code=2).stderr
    assert why in stderr
    assert "loading" not in stderr


def test_options_that_would_act_nowhere_are_refused(run):
    for option in ("--weights 0.5", "--density 0.5", "--rank 2"):
        assert "are for several adapters: give --combine METHOD" in run(f"a {option}", code=2).stderr
    for form in ("peft", "vllm", "lora-gguf"):
        assert f"{form} holds the adapter alone" in run(f"a --into x --as {form} --probes prose.txt", code=2).stderr


def test_scores_are_not_lost_to_what_comes_after_them(run):
    command = "a b --combine cat --task sums.yaml --examples 2 --limit 0"
    assert "exact_match" in run(command, code=2).stdout
    assert json.loads(run(f"{command} --json", code=2).stdout)["tasks"]
    model = halka.adapt(*halka.load_base("base"))
    model.add("other", halka.Prefix(length=3))
    halka.save(model, "other", "other")
    told = run("prefix other --combine linear --task sums.yaml --examples 2")
    assert "there is nothing to merge" in told.stderr
    assert "exact_match" in told.stdout


def test_an_adapter_may_be_called_as_what_combines_it_is(run):
    Path("combined").symlink_to("a")
    assert "merging changes" in run("combined b --combine cat --force").stdout
