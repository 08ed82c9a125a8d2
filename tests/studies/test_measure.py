"""One measured run says what it is: counts, bytes, curves and memory that agree with what was trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import halka
from classifiers import TEXTS, classifier
from halka.data.task import limit, load_task
from halka.methods import build_method
from halka.studies.experiment import digest
from halka.studies.measure import main, measure, search_together
from halka.studies.spec import BASE, Spec
from halka.util.errors import HalkaError
from halka.util.machine import commit
from runs_for_tests import a_run, base_and_task, written_task

pytestmark = pytest.mark.filterwarnings("ignore:.* accepted answers are longer")  # its task has room for three tokens

LAYERS, WIDTH, INNER, KEYS = 2, 64, 96, 32


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return base_and_task(tmp_path_factory.mktemp("made"))


def test_a_run_says_what_was_trained(made, tmp_path, capsys):
    found = measure(a_run(made), tmp_path)
    per_layer = 4 * (2 * (WIDTH + WIDTH) + 2 * (WIDTH + KEYS) + 3 * (WIDTH + INNER))
    assert found["parameters"]["trainable"] == LAYERS * per_layer
    base, _ = halka.load_base(made / "base", dtype="float32")
    assert found["parameters"]["total"] == sum(p.numel() for p in base.parameters())
    assert found["adapter_bytes"] == (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    train = found["train"]
    assert [each["step"] for each in train["curve"]] == [1, 2, 3, 4, 5, 6]
    assert [each["step"] for each in train["validation"]] == [2, 4, 6]
    best = min(train["validation"], key=lambda each: each["loss"])
    assert (train["best_step"], found["validation_loss"]) == (best["step"], best["loss"])
    memory, trained = found["memory"], found["parameters"]["trainable"]
    assert memory["weights"] == found["parameters"]["total"] * 4 + trained * 4
    assert (memory["gradients"], memory["optimizer"]) == (trained * 4, trained * 8)
    assert memory["peak"] >= memory["baseline"] > 0
    assert memory["predicted"]["gradients"] == memory["gradients"]
    score = found["scores"]["exact_match"]
    assert score["n"] == 12
    assert len(found["draws"]) == 1000
    assert score["low"] <= sum(found["draws"]) / 1000 <= score["high"]
    assert found["latency"]["added"] == pytest.approx(
        found["latency"]["adapted_ms_per_token"] / found["latency"]["base_ms_per_token"] - 1
    )
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"step"' in line]
    assert [each["loss"] for each in steps] == [each["loss"] for each in train["curve"]]
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 12


def test_memory_is_left_out_where_its_peak_cannot_be_reset(made, tmp_path, monkeypatch):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) != "/proc/self/clear_refs" and exists(path))
    result = measure(a_run(made, score_every=2), tmp_path)
    assert "memory" not in result
    assert result["train"]["scores"]


def test_a_prediction_that_fails_costs_no_trained_run(made, tmp_path, monkeypatch, capsys):
    def from_config(*args, **options):
        raise RuntimeError("not of this shape")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", from_config)
    found = measure(a_run(made), tmp_path)
    assert (found["status"], found["memory"].get("predicted")) == ("done", None)
    assert "the memory could not be predicted: RuntimeError: not of this shape" in capsys.readouterr().err


def test_the_kept_adapter_is_the_best_and_gives_the_measured_loss(made, tmp_path):
    from halka.training import TrainConfig, as_tokens, mean_loss

    found = measure(a_run(made), tmp_path)
    model = halka.adapt(*halka.load_base(made / "base", dtype="float32"))
    halka.load(model, tmp_path / "adapter", name="a")
    items = as_tokens(model, load_task(made / "task.yaml").validation, TrainConfig())
    assert mean_loss(model, "a", items) == pytest.approx(found["validation_loss"], rel=1e-5)


def test_scores_on_the_way_change_nothing_of_the_training(made, tmp_path):
    plain, scored = (measure(a_run(made, score_every=every), tmp_path / str(every)) for every in (None, 2))
    assert "scores" not in plain["train"]
    steps = [each["step"] for each in scored["train"]["scores"]]
    assert steps == ([2, 4, 6] if scored["train"]["best_step"] == 6 else [2, 4])
    assert all(0 <= each["score"] <= 1 and each["perplexity"] > 1 for each in scored["train"]["scores"])
    for key in ("curve", "validation"):
        assert scored["train"][key] == plain["train"][key]
    assert scored["scores"] == plain["scores"]


def test_by_score_every_evaluation_scores_and_the_best_score_is_kept(made, tmp_path):
    result = measure(a_run(made, best_by="score"), tmp_path)
    train = result["train"]
    assert [point["step"] for point in train["scores"]] == [point["step"] for point in train["validation"]]
    losses = {point["step"]: point["loss"] for point in train["validation"]}
    best = max(train["scores"], key=lambda point: (point["score"], -losses[point["step"]]))
    assert train["best_step"] == best["step"]
    assert result["validation_loss"] == losses[best["step"]]
    assert result["forgetting"]["perplexity"] == pytest.approx(best["perplexity"], rel=1e-6)
    assert (result["best_by"], measure(a_run(made), tmp_path / "loss")["best_by"]) == ("score", "loss")


def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(made, tmp_path, capsys):
    from halka.training import TrainConfig, as_tokens, train

    run = a_run(made, score_every=2)
    whole = measure(run, tmp_path / "whole")
    model, task = halka.adapt(*halka.load_base(made / "base", dtype="float32")), load_task(made / "task.yaml")
    model.add("run", build_method(run.method, run.fields), seed=0)
    config = TrainConfig(**run.train)
    items, held_out = (as_tokens(model, split, config, "run") for split in (task.train, task.validation))
    steps = train(model, "run", items, config, validation=held_out, folder=tmp_path / "stopped")
    assert [next(steps).step for _ in range(3)] == [1, 2, 3]
    steps.close()
    capsys.readouterr()
    resumed = measure(run, tmp_path / "stopped")
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["step"] for line in lines if '"step"' in line] == [4, 5, 6]
    for key in ("curve", "validation", "best_step", "tokens"):
        assert resumed["train"][key] == whole["train"][key]
    assert resumed["scores"] == whole["scores"]
    assert resumed["forgetting"] == whole["forgetting"]
    assert resumed["train"]["scores"] == whole["train"]["scores"][1:]  # `train` alone notes no score


def test_a_run_whose_evaluation_was_stopped_is_not_trained_again(made, tmp_path, capsys):
    run = a_run(made)
    first = measure(run, tmp_path)
    capsys.readouterr()
    again = measure(run, tmp_path)
    assert '"step"' not in capsys.readouterr().out
    assert (again["scores"], again["train"]["curve"]) == (first["scores"], first["train"]["curve"])
    assert again["memory"]["peak"] >= again["memory"]["baseline"] > 0


def test_a_run_that_begins_anew_has_no_scores_of_an_earlier_attempt(made, tmp_path):
    earlier = {"step": 5, "memory": {"peak": 10**15, "baseline": 0}, "scored": {"score": 1.0}}
    (tmp_path / "notes.jsonl").write_text(json.dumps(earlier) + "\n")
    result = measure(a_run(made, score_every=4), tmp_path)
    assert [scored["step"] for scored in result["train"]["scores"]] == [4]
    assert result["memory"]["peak"] < 10**15


def test_the_process_of_a_run_leaves_no_checkpoint(made, tmp_path):
    for name in ("work", "runs"):
        (tmp_path / name).mkdir()
    (tmp_path / "work" / "run.json").write_text(json.dumps(asdict(a_run(made))))
    assert main([str(tmp_path / "work" / "run.json"), str(tmp_path / "runs" / "result.json")]) == 0
    left = {path.name for path in (tmp_path / "work").iterdir()}
    assert left == {"run.json", "adapter", "predictions.jsonl", "metrics.jsonl", "notes.jsonl"}


def test_the_score_on_the_way_is_that_of_the_weights_then(made, tmp_path):
    train = {"batch_size": 4, "evaluate_every": 4, "lr": 1e-2, "seed": 0, "schedule": "constant", "warmup": 0.0}
    longer = measure(a_run(made, train={**train, "steps": 6}, score_every=4), tmp_path / "6")
    ended_there = measure(a_run(made, train={**train, "steps": 4}), tmp_path / "4")
    [then] = longer["train"]["scores"]
    assert then["perplexity"] == pytest.approx(ended_there["forgetting"]["perplexity"], rel=1e-6)
    assert longer["forgetting"]["perplexity"] != pytest.approx(then["perplexity"], rel=1e-6)


def test_where_no_rate_is_set_it_is_the_methods_at_the_width_of_the_base(made, tmp_path):
    found = measure(a_run(made, train={"steps": 2, "batch_size": 4, "lr": None, "seed": 0}), tmp_path)
    assert found["lr"] == 2 * halka.LoRA.lr
    assert json.loads((tmp_path / "adapter" / "halka.json").read_text())["training"]["lr"] == found["lr"]
    set_so = a_run(made, train={"steps": 2, "batch_size": 4, "lr": found["lr"], "seed": 0})
    assert measure(set_so, tmp_path / "set")["train"]["curve"] == found["train"]["curve"]


def test_a_classifiers_draws_are_of_the_metric_that_its_score_is_of(tmp_path):
    labels = ("yes", "Yes", "YES")  # one to a language model's metric, three to a classifier's
    model = classifier(labels=labels)
    model.base.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    rows = [{"prompt": text, "completion": labels[number % 3]} for number, text in enumerate([*TEXTS] * 3)]
    written_task(tmp_path, rows, metrics="accuracy")
    result = measure(a_run(tmp_path, BASE, train={"lr": None, "seed": 0, "batch_size": 4}), tmp_path / "out")
    assert result["scores"]["accuracy"]["value"] < 1
    assert sum(result["draws"]) / 1000 == pytest.approx(result["scores"]["accuracy"]["value"], abs=0.05)


def test_the_bare_base_is_not_trained_and_forgets_nothing(made, tmp_path):
    found = measure(a_run(made, BASE, train={"seed": 0, "lr": None}), tmp_path)
    assert found["parameters"]["trainable"] == 0
    assert found["forgetting"]["change"] == 0
    assert "train" not in found
    assert found["scores"]["exact_match"]["n"] == 12


def test_a_search_run_ends_with_its_validation_loss(made, tmp_path):
    found = measure(a_run(made, purpose="search"), tmp_path)
    assert found["validation_loss"] > 0
    assert "scores" not in found
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("fields", "length"), [({}, None), ({"length": 3}, 3)])
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_start_as_the_text(method, fields, length, made, tmp_path):
    _, tokenizer = halka.load_base(made / "base", dtype="float32")
    tokens = tokenizer.encode("say it again", add_special_tokens=False)
    length = length or len(tokens)
    assert len(tokens) > 3
    ids = {"length": length, "tokens": tokens}
    train = {"steps": 2, "batch_size": 4, "evaluate_every": 2, "lr": 1e-2, "seed": 0}
    run = a_run(made, method, purpose="search", train=train, examples={"validation": 2})
    by_text = measure(replace(run, fields=fields, text="say it again"), tmp_path / "text")
    by_ids = measure(replace(run, fields=ids), tmp_path / "ids")
    other = measure(replace(run, fields={"length": length}), tmp_path / "other")
    assert by_text["train"]["curve"] == by_ids["train"]["curve"] != other["train"]["curve"]


def test_a_text_is_part_of_what_a_run_computes(made):
    run = a_run(made, "prompt")
    assert len({run.key, replace(run, text="a").key, replace(run, text="b").key}) == 3


def test_full_fine_tuning_counts_all_and_keeps_the_cast_copy(made, tmp_path):
    found = measure(a_run(made, "full", dtype="bfloat16", train={"steps": 2, "batch_size": 4, "lr": 1e-4}), tmp_path)
    total = found["parameters"]["total"]
    assert found["parameters"]["trainable"] == total
    assert found["memory"]["weights"] == total * 2 + total * 4 + total * 2
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_a_failed_run_is_a_measurement_that_says_why(made, tmp_path):
    run = a_run(made, fields={"rank": 0})
    (tmp_path / "run.json").write_text(json.dumps(asdict(run)))
    assert main([str(tmp_path / "run.json"), str(tmp_path / "out" / "result.json")]) == 1
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["status"] == "failed"
    assert "rank must be a whole number" in found["error"]


def test_the_commit_is_of_this_code_alone(tmp_path):
    """Code that lies untracked in somebody's repository has no commit there."""
    import subprocess

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    code = tmp_path / "code"
    (code / "util").mkdir(parents=True)
    (code / "util" / "machine.py").write_text("one")
    (tmp_path / "theirs.py").write_text("one")
    git("add", "theirs.py")
    git("commit", "-q", "-m", "theirs")
    assert commit(code) is None
    git("add", ".")
    git("commit", "-q", "-m", "ours")
    (tmp_path / "theirs.py").write_text("two")
    assert commit(code) == git("rev-parse", "--short=12", "HEAD")
    (code / "another.py").write_text("two")
    assert commit(code) == git("rev-parse", "--short=12", "HEAD") + "-dirty"


def searches(made: Path, *rates: float) -> list[Spec]:
    train = {"steps": 6, "batch_size": 4, "evaluate_every": 2, "seed": 0}
    return [a_run(made, purpose="search", train={**train, "lr": rate}) for rate in rates]


def test_searches_trained_together_measure_what_each_does_alone(made, tmp_path, capsys):
    runs = searches(made, 1e-3, 1e-2)
    files = []
    for run in runs:
        path = tmp_path / str(run.train["lr"]) / "run.json"
        path.parent.mkdir()
        path.write_text(json.dumps(asdict(run)))
        files += [str(path), str(path.with_name("result.json"))]
    assert main(files) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"step"' in line]
    assert [(each["run"], each["step"]) for each in said] == [(run, step) for step in range(1, 7) for run in (0, 1)]
    for run, path in zip(runs, files[1::2], strict=True):
        together, alone = json.loads(Path(path).read_text()), measure(run, Path(path).parent / "alone")
        assert together["validation_loss"] == pytest.approx(alone["validation_loss"], rel=1e-4)
        assert together["train"]["best_step"] == alone["train"]["best_step"]
        assert together["train"]["tokens"] == alone["train"]["tokens"]
        assert (together["lr"], together["purpose"], together["together"]) == (run.train["lr"], "search", 2)
        assert {*alone} - {*together} == {"memory"}


def test_of_searches_trained_together_one_that_fails_is_recorded(made, tmp_path):
    wild, tame = searches(made, 1e30, 1e-2)
    wild = replace(wild, train={**wild.train, "warmup": 0.0, "clip": 0.0})
    failed, done = search_together([wild, tame])
    assert failed["status"] == "failed"
    assert "try a lower learning rate" in failed["error"]
    assert done["status"] == "done"


def test_a_base_that_was_replaced_since_the_study_began_is_refused(made, tmp_path):
    with pytest.raises(HalkaError, match=r"base has other files on .* than where the study was begun"):
        measure(a_run(made, base_files="0123456789ab"), tmp_path)


@pytest.mark.parametrize("changed", ["test.jsonl", "forgetting.txt"])
def test_data_that_were_edited_since_the_study_began_are_not_measured_under_its_names(changed, tmp_path):
    base_and_task(tmp_path)
    forgetting = tmp_path / "forgetting.txt"
    forgetting.write_text("It rains. " * 30)
    limits = {"train": 8, "test": 12}
    data = digest(limit(load_task(tmp_path / "task.yaml"), **limits), str(forgetting))
    run = a_run(tmp_path, data=data, examples=limits, forgetting=str(forgetting), purpose="search")
    assert measure(run, tmp_path / "before")["status"] == "done"
    file = tmp_path / changed
    file.write_text(file.read_text().replace("It", "That"))
    with pytest.raises(HalkaError, match=r"task task has other data on .* than when the study was begun: begin"):
        measure(run, tmp_path / "after")


def test_a_run_trains_where_the_chat_template_writes_the_time(made, tmp_path):
    """Its texts are of one time, as those of `halka train`."""
    shutil.copytree(made / "base", tmp_path / "base")
    template = tmp_path / "base" / "chat_template.jinja"
    template.write_text("Now: {{ strftime_now('%f') }}\n" + template.read_text())
    run = a_run(made, base=str(tmp_path / "base"), purpose="search")
    assert measure(run, tmp_path / "work")["status"] == "done"
