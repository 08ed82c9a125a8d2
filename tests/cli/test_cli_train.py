"""`halka train`: settings, what it says and saves, what it refuses, what is read of data."""

from __future__ import annotations

import json
import re
import shutil
import sys
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import halka as halka_api
from commands import TRAIN, failure, halka, parsed, stopped
from halka.cli.reading import read_data
from halka.methods import IA3, Joint, LoRA, Modules, build_method
from halka.storage.adapter_folder import AdapterFolder
from tokenizers_for_tests import chatml_tokenizer


def test_what_is_read_is_said(here):
    rows = [{"prompt": f"What is {i}?", "completion": str(i)} for i in range(4)]
    for split, kept in (("train", rows), ("test", [*rows[:1], {"prompt": "Why?", "completion": "No"}])):
        Path(f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    with Path("train.jsonl").open("a") as file:
        file.write("not JSON\n")
    task = {"name": "own", "train": "train.jsonl", "test": "test.jsonl", "metrics": "exact_match"}
    Path("task.yaml").write_text(json.dumps(task))
    for command in (
        "train --task task.yaml --base base --dtype float32 --steps 1 --rank 4 -o new",
        "evaluate --task task.yaml --base base --dtype float32 --max-new-tokens 1",
    ):
        told = halka(command).stderr
        assert "own: 1 row cannot be used; the first: train.jsonl:5: not valid JSON" in told
        assert "own: train has 1 prompt of test, too" in told
    told = halka("evaluate --data train.jsonl --shape prompt --base base --dtype float32 --max-new-tokens 1").stderr
    assert "train.jsonl: 4 examples, read as prompt\n" in told
    Path("more.jsonl").write_text(json.dumps({**rows[0], "context": "Numbers.", "adapter": None}) + "\n")
    told = halka("train --data more.jsonl --base base --dtype float32 --steps 1 --rank 4 -o more").stderr
    assert "more.jsonl: not read: context\n" in told
    assert "not read: context" in halka("data preview more.jsonl --base base").stdout
    files = "--data train.jsonl --validation test.jsonl"
    told = halka(f"train {files} --base base --dtype float32 --steps 1 --rank 4 -o both").stderr
    assert "train: train has 1 prompt of validation, too: scores on validation are too high" in told


def test_long_rows_are_cut_to_the_room_beside_virtual_tokens(here):
    rows = [{"prompt": "What is it?", "completion": "It is. " * 200}] * 3
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = halka("train --base base --data long.jsonl --dtype float32 --method prompt --steps 1 -o new").stderr
    assert "of 3 examples 3 are cut to 236 tokens" in told
    assert "Warning" not in told


def test_train_leaves_an_adapter_with_its_card(run_and_data):
    folder = run_and_data / "run"
    assert sorted(each.name for each in folder.iterdir()) == ["adapter", "metrics.jsonl", "run.yaml"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    card = json.loads((folder / "adapter" / "halka.json").read_text())
    assert (card["task"], card["method"]["name"], card["method"]["fields"]["rank"]) == ("data", "lora", 4)
    assert (card["training"]["steps"], card["training"]["lr"], card["training"]["examples"]) == (6, 2e-3, 20)
    assert card["measurements"]["validation_loss"] > 0


def test_train_says_what_happened_and_what_is_next(here):
    result = halka(f"train {TRAIN} --steps 6 -o new")
    assert "6 steps in" in result.stdout
    assert "step 6/6: 0.0 s left, loss " in result.stderr
    assert re.search(r"\d+ tokens/s \(\d+% of them saved by packing\), [\d.]+ [GM]B", result.stderr)
    assert "Next: halka generate --base base --adapter new/adapter" in result.stderr
    made = parsed(f"train {TRAIN} --steps 6 --validation data.jsonl -o other")
    assert (made["steps"], made["adapter"], made["method"]["name"]) == (6, "other/adapter", "lora")
    assert made["validation_loss"] > 0


def test_the_best_by_score_answers_best(here):
    """Of the validation examples a quarter has an answer that nobody taught."""
    for file, answers in (("train", ["Yes", "No"]), ("check", ["Yes", "No", "Yes", "Maybe"])):
        rows = [{"prompt": f"Is it {word}?", "completion": word} for word in answers]
        Path(f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = "--base base --data train.jsonl --dtype float32 --rank 8 --lr 0.003 --steps 60 --evaluate-every 20"
    assert "validation examples" in failure(f"train {data} --best-by score -o new")
    assert not Path("new").exists()
    made = parsed(f"train {data} --validation check.jsonl --best-by score -o new")
    assert made["score"] == 0.75
    scores = parsed("evaluate --data check.jsonl --base base --dtype float32 --adapter new/adapter")["scores"]
    assert scores["exact_match"]["value"] == 0.75
    told = halka("train --config new/run.yaml --overwrite")
    assert "validation loss" in told.stdout
    assert "and score 0.7500 at step" in told.stdout
    assert ", score 0.7500 (best)" in told.stderr
    card = json.loads(Path("new/adapter/halka.json").read_text())
    assert card["measurements"]["validation_score"] == 0.75
    assert [point["score"] for point in card["training"]["curve"] if "score" in point][-1] == 0.75
    assert parsed(f"train {data} --validation check.jsonl -o other")["score"] is None


def test_settings_combine(here, monkeypatch):
    """The file below the environment below flags."""
    Path("run.yaml").write_text("base: base\ndata: data.jsonl\nrank: 2\ntrain: {steps: 1, lr: 0.1, seed: 1}\n")
    monkeypatch.setenv("HALKA_TRAIN_STEPS", "2")
    monkeypatch.setenv("HALKA_TRAIN_LR", "0.2")
    made = parsed("train --config run.yaml --lr 0.3 -o new")
    assert (made["method"]["fields"]["rank"], made["steps"], made["lr"]) == (2, 2, 0.3)
    told = yaml.safe_load(Path("new/run.yaml").read_text())
    assert (told["rank"], told["train"]["steps"], told["train"]["seed"]) == (2, 2, 1)


def test_epochs_are_over_steps_of_what_comes_before(here, monkeypatch):
    halka(f"train {TRAIN} --steps 3 --batch-size 4 -o new")
    examples = len(Path("data.jsonl").read_text().splitlines())
    assert parsed("train --config new/run.yaml --epochs 1 -o other")["steps"] == -(-examples // 4)
    monkeypatch.setenv("HALKA_TRAIN_EPOCHS", "1")
    assert parsed("train --config new/run.yaml --steps 2 -o third")["steps"] == 2
    assert parsed("train --config new/run.yaml -o fourth")["steps"] == -(-examples // 4)


def test_warm_up_in_steps_and_as_a_share_are_over_each_other(here):
    for number, (flag, warmup) in enumerate([("-steps 1", (0.06, 1)), (" 0.1", (0.1, None)), ("-steps 2", (0.06, 2))]):
        before = f"{TRAIN} --steps 2" if number == 0 else f"--config {number - 1}/run.yaml"
        halka(f"train {before} --warmup{flag} -o {number}")
        train = yaml.safe_load(Path(f"{number}/run.yaml").read_text())["train"]
        assert (train["warmup"], train["warmup_steps"]) == warmup


def test_the_runs_file_runs_it_again(here):
    halka(f"train {TRAIN} --steps 4 --validation 0.2 -o new")
    before = load_file("new/adapter/adapter_model.safetensors")
    halka("train --config new/run.yaml --overwrite")
    after = load_file("new/adapter/adapter_model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_several_methods_are_trained_in_one_adapter(here):
    joins = "--join method:␣modules,␣targets:␣[model.norm] --join ia3"
    trained = parsed(f"train {TRAIN} --rank 4 --targets attn.q {joins} --steps 2 -o new")
    assert [trained["method"]["name"], *(other["name"] for other in trained["joined"])] == ["lora", "modules", "ia3"]
    method = Joint((LoRA(rank=4, targets=("attn.q",)), Modules(("model.norm",)), IA3()))
    card = AdapterFolder.open(Path("new/adapter")).card
    assert build_method(card.method["name"], card.method["fields"]) == method
    settings = yaml.safe_load(Path("new/run.yaml").read_text())
    assert settings["join"][0] == {"method": "modules", "targets": ["model.norm"]}
    assert parsed("train --config new/run.yaml --overwrite")["joined"] == trained["joined"]
    assert "finished" in failure("train --config new/run.yaml")
    Path("run.yaml").write_text("{base: base, data: data.jsonl, join: [{method: modules, targets: [model.norm]}, ia3]}")
    again = "train --config run.yaml --dtype float32 --rank 4 --targets attn.q"
    assert parsed(f"{again} --steps 2 -o other")["joined"] == trained["joined"]
    begun = parsed(f"train {TRAIN} --from new/adapter --steps 1 -o begun")
    assert (begun["method"], begun["joined"]) == (trained["method"], trained["joined"])
    assert parsed("train --config begun/run.yaml --overwrite")["joined"] == trained["joined"]
    assert "--from new/adapter has joined Modules(" in failure(
        f"train {TRAIN} --from new/adapter --join bitfit -o third"
    )


@pytest.mark.parametrize(
    ("join", "reason"),
    [
        ("method: modulse", "--join: there is no method 'modulse': choose one of"),
        ("method: modules, target: [a]", "--join: target: modules has no field 'target'; its fields are: targets"),
        ("method: tokens, tokens: [a]", "--join: tokens: ['a'] is not a whole number"),
        ("rank: 4", "--join: name the method, as in"),
        ("[a", "--join: ['[a'] is not YAML with keys"),
        ("method: full", "--join: joint: full trains all of the base's weights"),
        ("method: dora", "lora and dora both act on"),
        ("joint", "--join: there is no method 'joint'"),
    ],
)
def test_a_method_that_cannot_be_joined_is_refused(here, join, reason):
    assert reason in failure(f"train {TRAIN} --join {join.replace(' ', '␣')} --steps 1 -o new")
    assert not Path("new").exists()


def test_virtual_tokens_start_from_a_text(here):
    command = "train --base base --data data.jsonl --dtype float32 --steps 1 --text What␣is"
    ids = chatml_tokenizer().encode("What is", add_special_tokens=False)
    assert parsed(f"{command} --method prompt -o new")["method"]["fields"]["tokens"] == ids
    fields = parsed(f"{command} --method prefix --length 5 -o other")["method"]["fields"]
    assert (fields["length"], fields["tokens"]) == (5, ids)
    assert parsed("train --config new/run.yaml --overwrite")["method"]["fields"]["tokens"] == ids
    assert "lora has no virtual tokens: choose prompt or prefix" in failure(f"{command} -o third")
    assert "--text: tokens already say what virtual tokens start as" in failure(
        f"{command} --method prompt --tokens 3 -o third"
    )


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_tensorboard(here, monkeypatch):
    halka(f"train {TRAIN} --steps 2 --tensorboard -o new")
    assert list(Path("new/tensorboard").iterdir())
    halka(f"train {TRAIN} --steps 3 --tensorboard --overwrite -o new")
    events = EventAccumulator("new/tensorboard").Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    assert "pip install 'halka[tensorboard]'" in failure(f"train {TRAIN} --tensorboard -o other")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train --base base -o new", "name the training data by --task NAME or by --data FILE: give one of them"),
        ("train --base base --data data.jsonl --task support -o new", "give one of them"),
        ("train --base base --task support --validation 0.1 -o new", "--validation is for --data"),
        ("train --base base --task nope -o new", "task 'nope' is unknown. Name support"),
        ("train --base base --data nope.jsonl -o new", "--data: there is no file nope.jsonl: check the path"),
        ("train --base base --data run -o new", "--data: run is a folder: name a file in it"),
        ("train --base base --data run/adapter/adapter_model.safetensors -o new", "unknown kind of data file"),
        (f"train {TRAIN} --validation 3 -o new", "--validation 3 is no share of the data"),
        (f"train {TRAIN} --validation nope.jsonl -o new", "--validation: there is no file nope.jsonl"),
        (f"train {TRAIN} -o run", "--out: run holds a finished run: choose another folder, or add --overwrite"),
        (f"train {TRAIN} -o base", "--out: base exists and holds no training run: choose another folder"),
        (f"train {TRAIN} -o data.jsonl/run", "data.jsonl/run cannot be created, because"),
        ("train --base base --task support --shape prompt -o new", "--shape is for --data: the task support says what"),
        (f"train {TRAIN} -o data.jsonl", "--out: data.jsonl is a file: name a folder"),
        (f"train {TRAIN} --method lorra -o new", "there is no method 'lorra': choose one of"),
        (f"train {TRAIN} --method prefix -o new", "--rank: prefix has no field 'rank'; its fields are: length"),
        (f"train {TRAIN} --rnak 3 -o new", "--rank"),
        (f"train {TRAIN} --lr fast -o new", "--lr: 'fast' is not a number"),
        ("train --base base --data nope.jsonl --dtype fp8 -o new", "--dtype: 'fp8' is not one of bfloat16, float32"),
        ("train --base base --data nope.jsonl --quantize nf3 -o new", "--quantize: 'nf3' is not one of nf4, int8"),
        (f"train {TRAIN} --lr -1 -o new", "lr must be above 0, not -1"),
        (f"train {TRAIN} --from nope -o new", "--start-from: there is no folder nope"),
        (f"train {TRAIN} --from run --rank 8 -o new", "--from run/adapter has the rank 4, not 8: leave rank out"),
        (f"train {TRAIN} --from run --method dora -o new", "--from run/adapter has the method 'lora', not 'dora'"),
        (f"train {TRAIN} --from run --overwrite -o run", "run/adapter is in the run's own folder"),
        (f"train {TRAIN} --from run --text x -o new", "--text: virtual tokens start as those of run/adapter"),
        (f"train {TRAIN} --targets attn.x -o new", "lora: targets are linear layers"),
        (f"train {TRAIN} --config nope.yaml -o new", "there is no file nope.yaml"),
        (f"train {TRAIN.replace('--base base', '--base ./nope')} -o new", "./nope is no folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_made(here, command, told):
    assert told in failure(command)
    assert not Path("new").exists()


def test_other_settings_do_not_go_on_with_an_unfinished_run(here):
    stopped(f"train {TRAIN} --steps 8 -o new", "step 3/8")
    told = failure(f"train {TRAIN.replace('--base', '--seed 1 --base')} --steps 8 -o {here / 'new'}", folder=here)
    assert "holds an unfinished run that differs from this one: seed was 0, is 1" in told


def test_an_unfinished_run_that_named_no_rate_goes_on_at_the_one_it_began_with(here):
    """As one that was begun when the method's own rate was the default at every width."""
    stopped(f"train {TRAIN} --steps 8 --lr {LoRA.lr} -o new", "step 3/8")
    assert parsed(f"train {TRAIN} --steps 8 -o new")["lr"] == LoRA.lr
    assert parsed(f"train {TRAIN} --steps 8 -o other")["lr"] == 2 * LoRA.lr


def test_training_that_cannot_go_on_is_a_failure(here):
    told = failure_after_steps(f"train {TRAIN} --steps 50 --lr 1e30 --warmup 0 --clip 0 -o new")
    assert "try a lower learning rate" in told


def test_two_processes_do_not_train_in_one_folder(here):
    Path("new").mkdir()
    with FileLock("new/.lock"):
        assert "a training is under way in new: wait for its end" in failure(f"train {TRAIN} --steps 2 -o new")
    halka(f"train {TRAIN} --steps 2 -o new")


def failure_after_steps(command: str) -> str:
    result = halka(command, code=1)
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


def test_a_prefix_comes_with_a_word_on_peft_once(here):
    note = "note: PeftModel.generate of peft 0.21.2 ignores prefixes"
    shared = "--base base --data data.jsonl --dtype float32 --batch-size 4 --steps 1"
    assert halka(f"train {shared} --method prefix -o one --json").stderr.count(note) == 1
    assert note not in halka(f"train {shared} --method prompt -o two").stderr
    Path("runs.yaml").write_text("runs: [{out: a, method: prefix}, {out: b, method: prefix}]")
    assert halka(f"train {shared} --many runs.yaml").stderr.count(note) == 1


def test_a_run_goes_on_where_the_chat_template_writes_the_time(here):
    """As Llama 3's writes the day: the texts keep the time at which the run began, but for --overwrite."""
    shutil.copytree("base", "dated")
    template = Path("dated/chat_template.jinja")
    template.write_text("Now: {{ strftime_now('%f') }}\n" + template.read_text())
    command = f"train {TRAIN.replace('--base base', '--base dated')} --steps 8 --save-every 1 -o new"
    stopped(command, "step 3/8")
    assert "step 8/8" in halka(command).stderr
    assert "step 1/8" in halka(f"{command} --overwrite").stderr


def test_the_next_command_computes_as_the_training_did(here):
    assert "--dtype float32" in halka(f"train {TRAIN} --steps 2 -o new").stderr.splitlines()[-1]


MORE = "--base base --data data.jsonl --dtype float32 --batch-size 4 --steps 8"


def first_loss(folder: str) -> float:
    return json.loads(Path(folder, "metrics.jsonl").read_text().splitlines()[0])["loss"]


def test_a_run_begins_as_a_trained_adapter_which_stays_as_it_is(here):
    before = {file.name: file.read_bytes() for file in Path("run/adapter").iterdir()}
    expected = parsed(f"train {MORE} --from run -o more")
    assert expected["method"]["fields"]["rank"] == 4
    assert first_loss("more") < first_loss("run") / 1.05
    _base, _tokenizer, model = halka_api.open("run", dtype="float32")
    examples = read_data(Path("data.jsonl"), "--data", None)
    with closing(halka_api.train(model, "run", examples, {"steps": 8, "batch_size": 4})) as steps:
        assert first_loss("more") == next(steps).loss
    stopped(f"train {MORE} --from run -o other", "step 3/8")
    resumed = parsed("train --config other/run.yaml")
    assert resumed["loss"] == expected["loss"]
    one, other = (load_file(f"{folder}/adapter/adapter_model.safetensors") for folder in ("more", "other"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    card = json.loads(Path("more/adapter/halka.json").read_text())
    assert card["training"]["start_from"] == {"name": "run", "id": AdapterFolder.open("run").id}
    assert {file.name: file.read_bytes() for file in Path("run/adapter").iterdir()} == before


def test_a_run_goes_on_from_the_adapter_it_began_as_and_no_other(here):
    Path("more.yaml").write_text("start_from: run\n")
    stopped(f"train {MORE} --config more.yaml -o new", "step 3/8")
    halka(f"train {TRAIN} --steps 1 --overwrite -o run")
    for start in ("--from run", ""):
        told = failure(f"train {MORE} --rank 4 {start} -o new")
        assert "holds an unfinished run that differs from this one" in told
        assert "started from was" in told


@pytest.mark.usefixtures("kinds")
def test_without_a_card_the_method_is_read_beside_the_base(here):
    for name in ("lora", "prefix"):
        Path(name, "halka.json").unlink()
    assert "has the method 'prefix', not 'lora'" in failure(f"train {MORE} --from prefix --method lora -o new")
    Path("runs.yaml").write_text("runs: [{out: one, start_from: lora}, {out: two, start_from: prefix}]")
    one, two = parsed(f"train {MORE} --many runs.yaml")
    assert (one["method"]["name"], two["method"]["name"], two["method"]["fields"]["length"]) == ("lora", "prefix", 4)
    assert yaml.safe_load(Path("two/run.yaml").read_text())["method"] == "prefix"
