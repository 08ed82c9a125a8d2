"""The command line on a tiny base: each command, its JSON, its errors in one line, a run that is stopped or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer
import yaml
from filelock import FileLock
from safetensors.torch import load_file

from commands import failure, halka, parsed, process
from contract import disturb
from halka import AdapterStore, LoRA, Prefix, adapt, load_base, save
from halka.cli import app, cli_reference
from halka.cli.train import Deferred
from halka.studies.compare import Outputs
from halka.studies.runner import Event
from measurements_for_tests import measurements
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

ROOT = Path(__file__).parents[2]
TRAIN = "--base base --data data.jsonl --dtype float32 --batch-size 4 --rank 4"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a base, data, prompts, a page of prose, and a run that is finished."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = chatml_tokenizer()
    base = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id)
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [{"prompt": f"What is {a} plus {b}?", "completion": str(a + b)} for a in range(5) for b in range(5)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text('{"prompt": "Yes?"}\n{"messages": [{"role": "user", "content": "No?"}]}\n')
    (folder / "prose.txt").write_text("What is the capital of France? " * 20)
    halka(f"train {TRAIN} --steps 6 --validation 0.2 -o run", folder)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """An empty folder that sees what was made, to work in."""
    for each in made.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ── help ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def commands(command=None, path: str = "halka"):
    command = command or typer.main.get_command(app)
    yield path, command.whole() if isinstance(command, Deferred) else command
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, f"{path} {name}")


def test_the_page_is_up_to_date():
    page = ROOT / "docs" / "cli.md"
    assert page.read_text(encoding="utf-8") == cli_reference(), "write halka.cli.cli_reference() to docs/cli.md anew"


@pytest.mark.parametrize(("path", "command"), list(commands()), ids=lambda each: each if isinstance(each, str) else "")
def test_every_command_has_an_example_and_a_word_on_every_flag(path, command):
    text = command.get_help(typer.Context(command, info_name=path, terminal_width=100))
    assert "\n  Example" in text
    assert "  halka " in text.partition("\n  Example")[2]
    assert all(each.help for each in command.params if each.name != "help")


def test_help_needs_neither_torch_nor_transformers():
    """The package's own imports aside: those are `halka/__init__.py`'s."""
    code = (
        "import sys, types; package = types.ModuleType('halka'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['halka'] = package; from halka.cli import app; app(['--help'], standalone_mode=False)"
    )
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); {code}"
    done = subprocess.run([sys.executable, "-c", code, ROOT / "src" / "halka"], capture_output=True, text=True)
    assert "Commands:" in done.stdout
    assert done.stderr == "False\n"


def test_version():
    assert halka("--version").stdout.startswith("halka 0.")


def test_a_group_without_a_command_shows_its_help():
    assert "Commands:" in halka("").stdout
    assert "preview" in halka("data").stdout


# ── bases, methods, data ────────────────────────────────────────────────────────────────────────────────────────────


def test_base(here, monkeypatch):
    monkeypatch.setenv("HALKA_CACHE", str(here / "cache"))
    assert "not here yet" in halka("base list").stdout
    known, _ = parsed("base list")
    assert (known["name"], known["pulled"]) == ("smollm2-135m", False)
    assert "LlamaForCausalLM" in halka("base show base").stdout
    assert parsed("base show base")["layers"] == 2
    assert "unknown base 'foo'" in failure("base pull foo")
    assert "halka base pull smollm2-135m" in failure("base show smollm2-135m")


def test_base_pull(here, monkeypatch):
    def pull(name, on_progress):
        on_progress("fetching")
        return Path("cache") / name

    monkeypatch.setattr("halka.models.fetching.pull", pull)
    result = halka("base pull smollm2-135m --json")
    assert json.loads(result.stdout) == {"name": "smollm2-135m", "path": "cache/smollm2-135m"}
    assert result.stderr == "fetching\n"
    assert "halka train --base smollm2-135m" in halka("base pull smollm2-135m").stderr


def test_methods():
    shown = halka("methods").stdout
    described = parsed("methods")
    assert all(each["name"] in shown for each in described)
    lora = parsed("methods lora")
    assert lora == next(each for each in described if each["name"] == "lora")
    assert [lora["fields"][0][key] for key in ("name", "flag", "default")] == ["rank", "--rank", 16]
    one = halka("methods lora").stdout
    for told in ("--rank", "16", "rank r of the product", "acts on: linear", "arXiv:2106.09685", "0.001"):
        assert told in one
    assert "It has no fields" in halka("methods full").stdout
    assert "choose one of bitfit" in failure("methods lorra")


def test_the_bases_context_is_the_length_that_preview_counts_by(here):
    Path("long.jsonl").write_text(json.dumps({"prompt": "What is it?", "completion": "It is. " * 200}) + "\n")
    (found,) = parsed("data preview long.jsonl --base base")
    assert (found["lengths"]["max_length"], found["lengths"]["too_long"]) == (256, 1)
    assert "--max-length" in failure("data preview long.jsonl --base base --max-length -5")


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
        assert "own: 1 rows cannot be used; the first: train.jsonl:5: not valid JSON" in told
        assert "own: 1 prompts of test stand in train too" in told
    told = halka("evaluate --data train.jsonl --shape prompt --base base --dtype float32 --max-new-tokens 1").stderr
    assert "train.jsonl: 4 examples, read as prompt\n" in told


def test_long_rows_are_cut_to_the_room_beside_virtual_tokens(here):
    rows = [{"prompt": "What is it?", "completion": "It is. " * 200}] * 3
    Path("long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = halka("train --base base --data long.jsonl --dtype float32 --method prompt --steps 1 -o new").stderr
    assert "of 3 examples 3 are cut to 236 tokens" in told
    assert "Warning" not in told


def test_predictions_do_not_write_over_what_is_read(here):
    Path("own.jsonl").write_text(Path("data.jsonl").read_text())
    before = Path("own.jsonl").read_text()
    told = failure("evaluate --base base --data own.jsonl -o own.jsonl")
    assert "--out: own.jsonl would write over what is read" in told
    assert Path("own.jsonl").read_text() == before
    assert "nothing can be written to /proc" in failure("evaluate --base base --data own.jsonl -o /proc/x.jsonl")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    assert "--perplexity: latin.txt is not UTF-8" in failure("evaluate --base base --perplexity latin.txt")
    assert "--split train is for --task" in failure("evaluate --base base --data own.jsonl --split train")


def test_data_preview(here):
    assert "25 examples, read as prompt" in halka("data preview data.jsonl --base base").stdout
    first, second = parsed("data preview data.jsonl data.jsonl --base base --examples 1")
    assert (first["examples"], len(first["shown"]), first["shared"]) == (25, 1, {})
    assert len(second["shared"]["data.jsonl"]) == 25
    assert failure("data preview nope.jsonl --base base").startswith(
        "FILE: there is no file nope.jsonl: check the path"
    )


# ── train ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_train_leaves_an_adapter_with_its_card(made):
    folder = made / "run"
    assert sorted(each.name for each in folder.iterdir()) == ["adapter", "metrics.jsonl", "run.yaml"]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    card = json.loads((folder / "adapter" / "halka.json").read_text())
    assert (card["task"], card["method"]["name"], card["method"]["fields"]["rank"]) == ("data", "lora", 4)
    assert (card["training"]["steps"], card["training"]["lr"], card["training"]["examples"]) == (6, 1e-3, 20)
    assert card["measurements"]["validation_loss"] > 0


def test_train_says_what_happened_and_what_is_next(here):
    result = halka(f"train {TRAIN} --steps 6 -o new")
    assert "6 steps in" in result.stdout
    assert "step 6/6: 0.0 s left, loss " in result.stderr
    assert "tokens/s" in result.stderr
    assert "Next: halka generate --base base --adapter new/adapter" in result.stderr
    made = parsed(f"train {TRAIN} --steps 6 --validation data.jsonl -o other")
    assert (made["steps"], made["adapter"], made["method"]["name"]) == (6, "other/adapter", "lora")
    assert made["validation_loss"] > 0


def test_settings_combine(here, monkeypatch):
    """The file below the environment below flags."""
    Path("run.yaml").write_text("base: base\ndata: data.jsonl\nrank: 2\ntrain: {steps: 1, lr: 0.1, seed: 1}\n")
    monkeypatch.setenv("HALKA_TRAIN_STEPS", "2")
    monkeypatch.setenv("HALKA_TRAIN_LR", "0.2")
    made = parsed("train --config run.yaml --lr 0.3 -o new")
    assert (made["method"]["fields"]["rank"], made["steps"], made["lr"]) == (2, 2, 0.3)
    told = yaml.safe_load(Path("new/run.yaml").read_text())
    assert (told["rank"], told["train"]["steps"], told["train"]["seed"]) == (2, 2, 1)


def test_the_runs_file_runs_it_again(here):
    halka(f"train {TRAIN} --steps 4 --validation 0.2 -o new")
    before = load_file("new/adapter/adapter_model.safetensors")
    halka("train --config new/run.yaml --overwrite")
    after = load_file("new/adapter/adapter_model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_virtual_tokens_start_from_a_text(here):
    command = "train --base base --data data.jsonl --dtype float32 --steps 1 --text What␣is"
    ids = chatml_tokenizer().encode("What is", add_special_tokens=False)
    assert parsed(f"{command} --method prompt -o new")["method"]["fields"]["tokens"] == ids
    fields = parsed(f"{command} --method prefix --length 5 -o other")["method"]["fields"]
    assert (fields["length"], fields["tokens"]) == (5, ids)
    assert parsed("train --config new/run.yaml --overwrite")["method"]["fields"]["tokens"] == ids
    assert "lora has no virtual tokens: choose prompt or prefix" in failure(f"{command} -o third")
    assert "--text and --tokens both say" in failure(f"{command} --method prompt --tokens 3 -o third")


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_tensorboard(here, monkeypatch):
    halka(f"train {TRAIN} --steps 2 --tensorboard -o new")
    assert list(Path("new/tensorboard").iterdir())
    monkeypatch.setattr("halka.cli.training_run.find_spec", lambda name: None)
    assert "pip install 'halka[tensorboard]'" in failure(f"train {TRAIN} --tensorboard -o other")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("train --base base -o new", "what to train on is said by --task NAME or by --data FILE: give one of them"),
        ("train --base base --data data.jsonl --task support -o new", "give one of them"),
        ("train --base base --task support --validation 0.1 -o new", "--validation is for --data"),
        ("train --base base --task nope -o new", "task 'nope' is unknown. Name support"),
        ("train --base base --data nope.jsonl -o new", "--data: there is no file nope.jsonl: check the path"),
        ("train --base base --data run -o new", "--data: run is a folder: name a file in it"),
        ("train --base base --data prose.txt -o new", "prose.txt: unknown kind of data file"),
        (f"train {TRAIN} --validation 3 -o new", "--validation 3 is no share of the data"),
        (f"train {TRAIN} --validation nope.jsonl -o new", "--validation: there is no file nope.jsonl"),
        (f"train {TRAIN} -o run", "--out: run holds a finished run: choose another folder, or add --overwrite"),
        (f"train {TRAIN} -o base", "--out: base exists and holds no training run: choose another folder"),
        (f"train {TRAIN} -o data.jsonl", "--out: data.jsonl is a file: name a folder"),
        (f"train {TRAIN} --method lorra -o new", "there is no method 'lorra': choose one of"),
        (f"train {TRAIN} --method prefix -o new", "--rank: prefix has no field 'rank'; its fields are: length"),
        (f"train {TRAIN} --rnak 3 -o new", "--rank"),
        (f"train {TRAIN} --lr fast -o new", "--lr: 'fast' is not a number"),
        (f"train {TRAIN} --lr -1 -o new", "lr must be above 0, not -1"),
        (f"train {TRAIN} --targets attn.x -o new", "lora: targets are linear layers"),
        (f"train {TRAIN} --config nope.yaml -o new", "there is no file nope.yaml"),
        (f"train {TRAIN.replace('--base base', '--base ./nope')} -o new", "./nope is no folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_made(here, command, told):
    assert told in failure(command)
    assert not Path("new").exists()


def test_other_settings_do_not_go_on_with_an_unfinished_run(here, monkeypatch):
    stop_at(3, monkeypatch)
    halka(f"train {TRAIN} --steps 8 -o new", code=130)
    monkeypatch.undo()
    told = failure(f"train {TRAIN.replace('--base', '--seed 1 --base')} --steps 8 -o {here / 'new'}", folder=here)
    assert "holds an unfinished run that differs from this one: seed was 0, is 1" in told


def test_training_that_cannot_go_on_is_a_failure(here):
    told = failure_after_steps(f"train {TRAIN} --steps 50 --lr 1e30 --warmup 0 --clip 0 -o new")
    assert "try a lower learning rate" in told


def test_two_processes_do_not_train_in_one_folder(here):
    Path("new").mkdir()
    with FileLock("new/.lock"):
        assert "another process is training in new: choose another folder" in failure(f"train {TRAIN} --steps 2 -o new")
    halka(f"train {TRAIN} --steps 2 -o new")


def failure_after_steps(command: str) -> str:
    result = halka(command, code=1)
    assert result.stdout == ""
    return result.stderr.splitlines()[-1]


# ── several at once ─────────────────────────────────────────────────────────────────────────────────────────────────

MANY = """
base: base
data: data.jsonl
dtype: float32
validation: 0.2
train: {steps: 4}
runs:
  - {out: many/eight, rank: 8}
  - {out: many/two, rank: 2, train: {lr: 0.01, steps: 6}}
  - {out: many/prefix, method: prefix, length: 3, train: {seed: 1}}
"""


def test_several_are_trained_together_as_each_would_be_alone(here):
    Path("runs.yaml").write_text(MANY)
    found = parsed("train --many runs.yaml --batch-size 4")
    assert [(each["folder"], each["method"]["name"], each["steps"]) for each in found] == [
        ("many/eight", "lora", 4),
        ("many/two", "lora", 6),
        ("many/prefix", "prefix", 4),
    ]
    halka(f"train {TRAIN} --validation 0.2 --rank 2 --lr 0.01 --steps 6 --batch-size 4 -o alone")
    one, other = (load_file(f"{each}/adapter/adapter_model.safetensors") for each in ("many/two", "alone"))
    for key, tensor in other.items():
        torch.testing.assert_close(one[key], tensor, rtol=1e-3, atol=1e-5)
    halka("evaluate --base base --dtype float32 --data data.jsonl --limit 2 --adapter many/prefix/adapter")


def test_several_go_on_where_each_was_and_finished_ones_stay(here, monkeypatch):
    Path("runs.yaml").write_text(MANY)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert "Go on with the same command" in halka("train --many runs.yaml", code=130).stderr
    told = halka("train --config many/eight/run.yaml").stderr
    assert "step 3/4" in told
    result = halka("train --many runs.yaml")
    assert "many/eight holds a finished run: left as it is" in result.stderr
    assert "many/two: step 6/6" in result.stderr
    assert "many/prefix" in result.stdout
    assert "step 1/" not in result.stderr
    assert halka("train --many runs.yaml").stdout == ""


def test_of_several_one_that_fails_does_not_end_the_others(here):
    Path("runs.yaml").write_text(MANY.replace("lr: 0.01", "lr: 1e30, warmup: 0, clip: 0"))
    result = halka("train --many runs.yaml", code=1)
    assert "many/two: the validation loss became" in result.stderr
    assert Path("many/eight/adapter").exists()
    assert not Path("many/two/adapter").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("runs:", "rubs:"), "runs: a list of runs is missing"),
        (("out: many/two, ", ""), "runs[2].out is missing"),
        (("many/two", "many/eight"), "two have the folder"),
        (("rank: 2", "rnak: 2"), "runs[2].rnak: there is no such setting; did you mean rank?"),
        (("rank: 2", "base: other"), "runs[2].base: all runs share one base ('other' here)"),
        (("rank: 2", "rank: two"), "runs[2].rank: 'two' is not a whole number"),
        (("length: 3", "rank: 3"), "runs[3].rank: prefix has no field 'rank'"),
        (("base: base", "base: base\nout: all"), "out: each run has its own"),
    ],
)
def test_a_file_of_runs_that_makes_no_sense_is_refused_by_name(here, change, told):
    Path("runs.yaml").write_text(MANY.replace(*change))
    assert told in failure("train --many runs.yaml")
    assert not Path("many").exists()


def test_the_environment_gives_no_folder_for_several(here, monkeypatch):
    Path("runs.yaml").write_text(MANY)
    monkeypatch.setenv("HALKA_TRAIN_OUT", "elsewhere")
    assert "HALKA_TRAIN_OUT: out: each run of runs.yaml has its own" in failure("train --many runs.yaml")
    assert not Path("elsewhere").exists()


def test_one_run_and_several_are_not_said_at_once(here):
    Path("runs.yaml").write_text(MANY)
    assert "give one of them" in failure("train --many runs.yaml --config runs.yaml")
    assert "each run of runs.yaml has its own" in failure("train --many runs.yaml -o all")


# ── stopping ────────────────────────────────────────────────────────────────────────────────────────────────────────


def stop_at(step: int, monkeypatch, times: int = 1) -> None:
    """Ctrl-C while that step is shown."""
    from halka.cli.progress import StepProgress

    show = StepProgress.step

    def shown(self, made, *name):
        show(self, made, *name)
        if made.step == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StepProgress, "step", shown)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_after_the_step_and_the_run_goes_on(here, monkeypatch, times):
    command = f"train {TRAIN} --steps 12 --validation 0.2"
    with monkeypatch.context() as patch:
        stop_at(5, patch, times)
        result = halka(f"{command} -o new", code=130)
    assert "Stopped. Go on with: halka train --config new/run.yaml" in result.stderr
    assert result.stdout == ""
    assert not Path("new/adapter").exists()
    assert "step 6/12" in halka("train --config new/run.yaml").stderr
    halka(f"{command} -o straight")
    steps = [json.loads(line)["step"] for line in Path("new/metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 13)]
    one, other = (load_file(f"{each}/adapter/adapter_model.safetensors") for each in ("new", "straight"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_ctrl_c_without_checkpoints_says_so(here, monkeypatch):
    stop_at(2, monkeypatch)
    result = halka(f"train {TRAIN} --steps 5 --save-every none -o new", code=130)
    assert "Stopped before the first checkpoint: the same command begins anew" in result.stderr


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_weights(made, tmp_path):
    command = f"train {TRAIN.replace('base base', f'base {made}/base').replace('data.', f'{made}/data.')} --steps 400"
    command += " --save-every 20 --json"
    straight = process(f"{command} -o straight", tmp_path)
    killed = process(f"{command} -o killed", tmp_path)
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 70:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    assert not (tmp_path / "killed" / "adapter").exists()
    again = process(f"{command} -o killed", tmp_path)
    (said, _), (said_straight, _) = again.communicate(timeout=120), straight.communicate(timeout=120)
    assert json.loads(said)["loss"] == json.loads(said_straight)["loss"]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [*range(1, 401)]
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("killed", "straight"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_processes_end_with_the_right_codes(made):
    wrong = process("train --base base", made)
    interrupted = process(f"train {TRAIN} --steps 100000 -o interrupted", made)
    assert wrong.communicate()[1].startswith("Error: out is missing")
    assert wrong.returncode == 2
    metrics = made / "interrupted" / "metrics.jsonl"
    while not metrics.exists():
        assert interrupted.poll() is None, interrupted.communicate()
        time.sleep(0.05)
    interrupted.send_signal(signal.SIGTERM)
    assert "Go on with: halka train --config interrupted/run.yaml" in interrupted.communicate(timeout=60)[1]
    assert interrupted.returncode == 143


# ── evaluate, generate, adapters ────────────────────────────────────────────────────────────────────────────────────


EVALUATE = "evaluate --base base --dtype float32 --max-new-tokens 3"


def test_evaluate(here):
    result = halka(f"{EVALUATE} --adapter run/adapter --data data.jsonl --limit 4 -o p.jsonl --perplexity prose.txt")
    for told in ("exact_match", "95 % interval", "over 4 examples of data", "predictions in p.jsonl", "perplexity"):
        assert told in result.stdout
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0].keys() == {"where", "prompt", "references", "prediction", "adapter"}
    assert json.loads(Path("p.scores.json").read_text())["scores"].keys() == {"exact_match", "token_f1"}


def test_evaluate_as_json(here):
    found = parsed(f"{EVALUATE} --data data.jsonl --metrics chrf --limit 2")
    assert found["scores"].keys() == {"chrf"}
    assert found["scores"]["chrf"]["n"] == 2
    alone = parsed(f"{EVALUATE} --perplexity prose.txt")
    assert alone["perplexity"]["base"] > 1
    assert "scores" not in alone


def test_evaluate_on_a_task(here):
    Path("task.yaml").write_text("train: data.jsonl\ntest: 0.2\nmetrics: exact_match\nmax_new_tokens: 2\n")
    base = "evaluate --base base --dtype float32 --task task.yaml"
    assert parsed(base)["examples"] == 5
    assert parsed(f"{base} --split train --limit 3")["examples"] == 3
    assert "the task task has no validation examples: choose another --split" in failure(f"{base} --split validation")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("evaluate --base base", "what to evaluate on is said by --task NAME or by --data FILE"),
        ("evaluate --data data.jsonl", "--base"),
        ("evaluate --base base --data data.jsonl --metrics blue", "unknown metric 'blue' (did you mean 'bleu'?)"),
        ("evaluate --base base --data data.jsonl --metrics ,", "--metrics ',' names none"),
        ("evaluate --base base --data data.jsonl --limit 0", "--limit"),
        ("evaluate --base base --perplexity nope.txt", "--perplexity: there is no file nope.txt"),
        ("evaluate --base base --data data.jsonl -o prose.txt/p.jsonl", "--out: nothing can be written to prose.txt"),
        ("evaluate --base base --data data.jsonl --adapter nope", "--adapter: there is no folder nope"),
        ("evaluate --base base --data data.jsonl --adapter base", "base holds no adapter_config.json"),
        ("generate --base base --temperature hot Hi", "--temperature"),
        ("generate --base base --top-p 0.5 Hi", "--top-p is for drawing at random: give a --temperature"),
        ("generate --base base --temperature 1 --top-p 7 Hi", "--top-p is a share above 0 and at most 1, not 7"),
        ("generate --base base", "the prompt is empty"),
        ("generate --base base Hi --file prompts.jsonl", "a PROMPT and --file were given: give one of them"),
        ("generate --base base --file wrong.jsonl", 'wrong.jsonl:1: no prompt: a row has "prompt"'),
        ("generate --base ./nope Hi", "./nope is no folder"),
        ("adapters show nope", "FOLDER: there is no folder nope"),
        ("adapters show base", "base holds no adapter_config.json: it is not an adapter folder"),
        ("adapters show data.jsonl", "data.jsonl is a file: name the folder it is in"),
        ("trian", "No such command 'trian'"),
        ("--foo", "--foo"),
    ],
)
def test_a_wrong_command_is_one_line(here, command, told):
    Path("wrong.jsonl").write_text('{"question": "?"}\n')
    assert told in failure(command)


def test_an_adapter_of_another_base_is_refused(here):
    tiny("llama", seed=1, vocab_size=424, max_position_embeddings=256).save_pretrained("other")
    chatml_tokenizer().save_pretrained("other")
    command = "generate --base other --dtype float32 --adapter run/adapter --max-new-tokens 2 Hi"
    assert "was made for another base" in failure(command)
    halka(f"{command} --allow-other-base")


def test_generate(here):
    command = "generate --base base --dtype float32 --max-new-tokens 4"
    streamed = halka(f"{command} --adapter run/adapter What␣is␣this?").stdout
    told = parsed(f"{command} --adapter run/adapter What␣is␣this?")
    assert told["prompt"] == "What is this?"
    assert streamed.strip() == told["answer"].strip()
    assert halka(f"{command} --system Yes.", input="What?\n").stdout


def test_generate_draws_the_same_for_the_same_seed(here):
    command = "generate --base base --dtype float32 --max-new-tokens 6 --file prompts.jsonl --temperature 1 --top-p 0.9"
    first, again, other = (parsed(f"{command} --seed {seed}") for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert [each["prompt"] for each in first] == ["Yes?", "No?"]
    assert "── prompts.jsonl:1: Yes?" in halka(command).stdout


# ── an adapter for each row ─────────────────────────────────────────────────────────────────────────────────────────


GENERATE = "generate --base base --dtype float32 --max-new-tokens 6"


@pytest.fixture
def kinds(here) -> None:
    """Folders `lora` and `prefix` with adapters, and a store `adapters` with both; a second `lora` is its newest."""
    model = adapt(*load_base("base", dtype="float32"))
    for name, method in (("lora", LoRA(rank=4)), ("prefix", Prefix(length=4))):
        model.add(name, method)
        disturb(model, name, by=0.2)
        save(model, name, name)
        AdapterStore("adapters").save(model, name)
    disturb(model, "lora", seed=4, by=0.2)
    AdapterStore("adapters").save(model, "lora")


def rows(file: str, **adapters) -> str:
    """A file of rows with `adapter` fields by their prompts."""
    lines = ({"prompt": f"What is {key}?", "completion": "4", **named} for key, named in adapters.items())
    Path(file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def predictions(file: str) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def answers(command: str) -> list[tuple[str | None, str]]:
    """Who answered what."""
    return [(each["adapter"], each["answer"]) for each in parsed(command)]


def test_rows_of_a_file_name_their_adapters(kinds):
    plain = rows("plain.jsonl", a={}, b={}, c={}, d={})
    base, lora, prefix = (
        [answer for _, answer in answers(f"{GENERATE} --file {plain} {adapter}")]
        for adapter in ("", "--adapter lora", "--adapter prefix")
    )
    assert all(len({one, two, three}) == 3 for one, two, three in zip(base, lora, prefix, strict=True))
    file = rows("f.jsonl", a={"adapter": "x"}, b={"adapter": None}, c={"adapter": "prefix"}, d={})
    expected = [("x", lora[0]), (None, base[1]), ("prefix", prefix[2]), (None, base[3])]
    assert answers(f"{GENERATE} --file {file} --adapter x=lora --adapter prefix=prefix") == expected
    assert (
        "── f.jsonl:3, prefix: What is c?"
        in halka(f"{GENERATE} --file f.jsonl --adapter x=lora --adapter prefix").stdout
    )
    expected = [("x", lora[0]), ("prefix", prefix[1]), ("prefix", prefix[2]), ("prefix", prefix[3])]
    assert answers(f"{GENERATE} --file {file} --adapter x=lora --adapter prefix") == expected
    told = failure(f"{GENERATE} --file {file} --adapter lora --adapter prefix --adapter x=lora")
    assert "f.jsonl:2: it names no adapter, and lora and prefix were given" in told
    Path("f.csv").write_text("prompt,adapter\nWhat is a?, lora \nWhat is b?,\n")
    assert answers(f"{GENERATE} --file f.csv --adapter lora=lora") == [("lora", lora[0]), (None, base[1])]


def test_every_adapter_answers_where_rows_name_none(kinds):
    alone = [parsed(f"{GENERATE} --adapter {name} What?") for name in ("lora", "prefix")]
    assert parsed(f"{GENERATE} --adapter lora --adapter prefix What?") == alone
    assert parsed(f"{GENERATE} --adapter x=lora What?") == {**alone[0], "adapter": "x"}
    shown = halka(f"{GENERATE} --adapter lora --adapter prefix What?").stdout
    assert "── lora: What?" in shown
    assert "── prefix: What?" in shown
    both = answers(f"{GENERATE} --adapter lora --adapter prefix --file {rows('f.jsonl', a={}, b={})}")
    assert [name for name, _ in both] == ["lora", "prefix", "lora", "prefix"]


def test_rows_and_flags_name_adapters_of_a_store(kinds):
    first = parsed(f"{GENERATE} --adapter lora What?")["answer"]
    newest = parsed(f"{GENERATE} --store adapters --adapter lora What?")
    assert newest["adapter"] == "lora"
    assert newest["answer"] != first
    assert parsed(f"{GENERATE} --store adapters --adapter lora@1 What?")["answer"] == first
    assert parsed(f"{GENERATE} --store adapters --adapter lora=lora What?")["answer"] == first
    lines = [{"prompt": "What?", "adapter": name} for name in ("lora", "lora@1", None, "lora@2", "prefix")]
    Path("f.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = dict(answers(f"{GENERATE} --file f.jsonl --store adapters"))
    assert list(made) == ["lora", "lora@1", None, "lora@2", "prefix"]
    assert made["lora"] == made["lora@2"] == newest["answer"]
    assert made["lora@1"] == first
    assert len(set(made.values())) == 4
    for size in ("1", "1MB"):
        assert made == dict(answers(f"{GENERATE} --file f.jsonl --store adapters --pool {size} --batch-size 1"))


def test_a_store_of_another_base_is_refused_unless_allowed(kinds):
    tiny("llama", seed=1, vocab_size=424, max_position_embeddings=256).save_pretrained("other")
    chatml_tokenizer().save_pretrained("other")
    command = f"{GENERATE.replace('base base', 'base other')} --store adapters --adapter prefix Hi"
    assert "was made for another base" in failure(command)
    halka(f"{command} --allow-other-base")


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ("--adapter lora=lora", "f.jsonl:2: there is no adapter 'lroa' among those given: did you mean lora?"),
        ("--adapter x=prefix", "f.jsonl:1: there is no adapter 'lora' among those given: those are x"),
        ("", "f.jsonl:1: there is no adapter 'lora', and none was given: add --adapter lora=FOLDER, or --store FOLDER"),
        ("--store adapters", "f.jsonl:2: there is no adapter 'lroa' among those given: did you mean lora?"),
        ("--store run", "f.jsonl:1: there is no adapter 'lora', and none at all in run"),
        ("--store nope", "--store: there is no folder nope"),
        ("--store adapters --adapter lorra", "--adapter: there is no adapter 'lorra' among those given: did you mean"),
        ("--store adapters --adapter lora@3", "--adapter: 'lora' has no version 3: there are 1, 2"),
        ("--store adapters --adapter lora@x", "--adapter: there is no adapter 'lora@x' among those given: did you"),
        ("--adapter lora --adapter lora=prefix", "--adapter: two are named 'lora': name each its own way, as in NAME="),
        ("--adapter =lora", "--adapter: '=lora' is not NAME=FOLDER"),
        ("--adapter lora=", "--adapter: 'lora=' is not NAME=FOLDER"),
        ("--adapter lora=nope", "--adapter: there is no folder nope"),
        ("--adapter lora=base", "--adapter: base holds no adapter_config.json"),
        ("--adapter lora --pool 0", "--pool"),
    ],
)
def test_an_adapter_that_is_not_there_is_told_by_its_row_before_the_base_is_loaded(kinds, adapters, told):
    file = rows("f.jsonl", a={"adapter": "lora"}, b={"adapter": "lroa"})
    assert told in failure(f"generate --base ./nope --file {file} {adapters}")
    assert told in failure(f"evaluate --base ./nope --data {file} {adapters}")


def test_what_names_no_adapter_is_told(kinds):
    assert "--store: nothing names an adapter in it: add --adapter NAME" in failure(
        "generate --base ./nope --store run Hi"
    )
    told = failure(f"generate --base ./nope --file {rows('f.jsonl', a={}, b={'adapter': ['lora']})}")
    assert told == "f.jsonl:2: the adapter is ['lora']: give its name as a text, or null"


def test_evaluate_scores_each_of_several_adapters(kinds):
    command = f"{EVALUATE} --data data.jsonl --limit 4 --metrics chrf"
    alone = [parsed(f"{command} --adapter {name} -o {name}.jsonl")["scores"] for name in ("lora", "prefix")]
    found = parsed(f"{command} --adapter lora --adapter prefix --perplexity prose.txt -o p.jsonl")
    assert found["by_adapter"] == [
        {"adapter": name, "examples": 4, "scores": scores}
        for name, scores in zip(("lora", "prefix"), alone, strict=True)
    ]
    assert "scores" not in found
    assert found["examples"] == 4
    assert [each["adapter"] for each in found["perplexity"]["by_adapter"]] == ["lora", "prefix"]
    assert predictions("p.jsonl")[0::2] == predictions("lora.jsonl")
    assert predictions("p.jsonl")[1::2] == predictions("prefix.jsonl")
    assert predictions("lora.jsonl") != predictions("prefix.jsonl")
    shown = " ".join(halka(f"{command} --adapter lora --adapter prefix --perplexity prose.txt").stdout.split())
    for told in ("adapter examples chrf lora 4 ", " prefix 4 ", " over 4 examples of data ", " with lora "):
        assert told in shown


def test_evaluate_scores_the_bare_base_beside_adapters(kinds):
    command = f"{EVALUATE} --data data.jsonl --limit 4 --metrics chrf"
    bare = parsed(command)["scores"]
    one = parsed(f"{command} --adapter lora --with-base -o new/folder/p.jsonl")
    assert one["scores"] == parsed(f"{command} --adapter lora")["scores"]
    assert one["base_scores"] == bare
    made = predictions("new/folder/p.jsonl")
    assert [each["adapter"] for each in made] == ["lora"] * 4 + [None] * 4
    both = parsed(f"{command} --adapter lora --adapter prefix --with-base")
    assert [each["adapter"] for each in both["by_adapter"]] == ["lora", "prefix"]
    assert both["base_scores"] == bare
    shown = halka(f"{command} --adapter lora --with-base").stdout.splitlines()
    assert [line.partition("  ")[0] for line in shown] == [
        "adapter",
        "lora",
        "the bare base",
        "over 4 examples of data",
    ]
    Path("f.json").write_text(json.dumps([{"prompt": "What?", "completion": "4", "adapter": "lora"}]))
    rows = parsed(f"{EVALUATE} --data f.json --metrics chrf --adapter lora --with-base")
    assert (rows["scores"]["chrf"]["n"], rows["base_scores"]["chrf"]["n"]) == (1, 1)
    assert "--with-base scores the bare base beside adapters" in failure(f"{command} --with-base")


def test_evaluate_answers_each_row_with_its_adapter(kinds):
    named = {"a": {"adapter": "lora"}, "b": {"adapter": "prefix"}, "c": {"adapter": "lora"}, "d": {}}
    lines = [{"prompt": f"What is {key}?", "completion": "4", **named[key]} for key in named]
    Path("f.json").write_text(json.dumps([*lines, {"prompt": "no answer"}]))  # all in one line
    found = parsed(f"{EVALUATE} --data f.json --store adapters --metrics chrf -o p.jsonl")
    assert [(each["adapter"], each["examples"]) for each in found["by_adapter"]] == [
        ("lora", 2),
        ("prefix", 1),
        (None, 1),
    ]
    assert found["scores"]["chrf"]["n"] == 4
    made = predictions("p.jsonl")
    assert [each["adapter"] for each in made] == ["lora", "prefix", "lora", None]
    answered = answers(f"{GENERATE.replace('6', '3')} --store adapters --file {rows('g.jsonl', **named)}")
    assert [(each["adapter"], each["prediction"]) for each in made] == answered
    shown = " ".join(halka(f"{EVALUATE} --data f.json --store adapters").stdout.split())
    for told in (" the bare base 1 ", " all 4 ", "over 4 examples of f"):
        assert told in shown


def test_adapters_show(here):
    found = parsed("adapters show run/adapter")
    assert found["method"]["name"] == "lora"
    assert found["parameters"] == found["card"]["parameters"]
    assert [(each["name"], each["shape"], each["count"]) for each in found["tensors"]][:2] == [
        ("lora_A", [4, 64], 12),
        ("lora_A", [4, 96], 2),
    ]
    shown = halka("adapters show run/adapter").stdout
    for told in ("lora (rank 4", "data", "steps 6", "validation_loss", "4 × 64"):
        assert told in shown


def test_adapters_convert_to_another_tools_folder_and_back(here):
    model = adapt(*load_base("base", dtype="float32"))
    model.add("a", LoRA(rank=4, targets=("attn.qv",)))
    disturb(model, "a")
    save(model, "a", "ours")
    told = parsed("adapters convert ours theirs --base base --to adapterhub")
    assert (told["from"], told["to"], told["method"]) == ("peft", "adapterhub", "lora")
    assert sorted(each.name for each in Path("theirs").iterdir()) == [
        "adapter.safetensors",
        "adapter_config.json",
        "halka.json",
    ]
    assert parsed("adapters show theirs")["parameters"] == model.adapter("a").count()
    halka("adapters convert theirs back --base base")
    before, after = (load_file(f"{each}/adapter_model.safetensors") for each in ("ours", "back"))
    assert all(after[key].equal(tensor) for key, tensor in before.items())

    torch.save(load_file("theirs/adapter.safetensors"), "theirs/pytorch_adapter.bin")
    for name in ("adapter.safetensors", "halka.json"):
        Path("theirs", name).unlink()
    assert "as a pickle (pytorch_adapter.bin)" in failure("adapters convert theirs again --base base")
    halka("adapters convert theirs again --base base --allow-pickle")
    use = 'generate --base base --dtype float32 --max-new-tokens 4 "What?" --adapter'
    assert "as a pickle (pytorch_adapter.bin)" in failure(f"{use} theirs")
    assert parsed(f"{use} theirs --allow-pickle --json")["answer"] == parsed(f"{use} ours --json")["answer"]
    halka("merge theirs --base base --allow-pickle --force")
    assert load_file("again/adapter_model.safetensors").keys() == before.keys()


def test_adapters_convert_refuses_by_name(here):
    assert "'hub' is not one of 'peft', 'adapterhub'" in failure("adapters convert run/adapter x --base base --to hub")
    assert "AdapterHub's library has no place for attn.o in llama" in failure(
        "adapters convert run/adapter x --base base --to adapterhub"
    )
    assert not Path("x").exists()


def test_a_run_s_folder_stands_for_its_adapter_which_is_called_after_it(here):
    lines = Path("prompts.jsonl")
    lines.write_text('{"prompt": "What?"}\n')
    for place in ("run", "run/adapter"):
        (answer,) = parsed(f"generate --base base --max-new-tokens 2 --adapter {place} --file prompts.jsonl")
        assert answer["adapter"] == "run"
    assert parsed("adapters show run")["files"] == parsed("adapters show run/adapter")["files"]
    assert "run, version 1" in halka("adapters add run --store kept").stdout


def test_adapters_show_finds_a_name_in_a_store(here):
    halka("adapters add run/adapter mine --store kept")
    halka("adapters add run/adapter mine --store kept")
    found = parsed("adapters show mine --store kept --version 1")
    assert found["folder"].endswith("1")
    assert found["tensors"] == parsed("adapters show run/adapter")["tensors"]
    assert "--version is one of a name's in a store" in failure("adapters show run/adapter --version 1")
    assert "nope" in failure("adapters show nope --store kept")


def test_a_pool_without_a_store_is_refused(here):
    assert "--pool is what a store's adapters may take" in failure('generate --base base --pool 5 "hello"')
    told = failure('generate --base base --store kept --pool much "hello"')
    assert "'--pool': 'much' is no size above 0: write it as 512MB, 1.5GB, or as a number of MB: see" in told


def test_adapters_show_reads_pefts_folders_and_finds_damage(here):
    import shutil

    folder = Path("mine")
    shutil.copytree("run/adapter", folder)
    (folder / "halka.json").unlink()
    shown = halka("adapters show mine").stdout
    assert "No Card (halka.json)" in shown
    assert "LORA" in shown
    assert parsed("adapters show mine")["method"] == "LORA"
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    assert "mine/adapter_model.safetensors is damaged" in failure("adapters show mine")


# ── compare and demo ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def experiment(here, monkeypatch):
    """An experiment whose runs are only told of: one is done, one fails if `fails` says so."""
    fails: list[bool] = []

    def run(experiment, folder, *, retry=False):
        yield Event("started", "LoRA, seed 0", 0, 2)
        yield Event("step", "LoRA, seed 0", 0, 2, 1, 4, 0.5)
        yield Event("done", "LoRA, seed 0", 1, 2, message="exact_match 0.500")
        yield Event("failed" if fails else "skipped", "prefix, seed 0", 2, 2, message="two\nlines")

    def write_outputs(experiment, folder, command, sections=()):
        assert command in ("halka compare experiment.yaml -o results", "halka demo -o halka-demo")
        made = measurements(seeds=1, failures=False)
        if fails:
            made[-1] = {**made[-1], "status": "failed", "error": "no"}
        return Outputs(folder / "report.html", folder / "table.md", folder / "summary.json", made, 3)

    monkeypatch.setattr("halka.studies.compare.run", run)
    monkeypatch.setattr("halka.studies.compare.write_outputs", write_outputs)
    Path("experiment.yaml").write_text("name: e\nbase: base\ntask: support\nmethods: [{method: lora}]\n")
    return fails


def test_compare(experiment):
    result = halka("compare experiment.yaml -o results")
    assert "[1/2] done LoRA, seed 0: exact_match 0.500" in result.stderr
    assert "skipped prefix, seed 0: two lines" in result.stderr
    assert "LoRA r16" in result.stdout
    assert "report: results/report.html" in result.stdout
    assert "3 measurements in results are of other settings, and left out" in result.stderr
    assert parsed("compare experiment.yaml -o results")["failed"] == 0


def test_compare_with_failed_runs_fails_after_its_report(experiment):
    experiment.append(True)
    result = halka("compare experiment.yaml -o results", code=1)
    assert "report: results/report.html" in result.stdout
    assert "failed: --retry runs what failed again" in result.stderr


def test_compare_stopped_says_how_to_go_on(experiment, monkeypatch):
    def run(experiment, folder, *, retry=False):
        yield Event("started", "LoRA, seed 0", 0, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr("halka.studies.compare.run", run)
    assert "goes on with what is missing" in halka("compare experiment.yaml -o results", code=130).stderr


def test_demo_pulls_its_base_first(experiment, monkeypatch):
    pulled = []
    monkeypatch.setattr("halka.models.fetching.pull", lambda name, say: pulled.append(name))
    assert "report: halka-demo/report.html" in halka("demo").stdout
    assert pulled == ["smollm2-135m"]


def test_a_store_of_adapters(here):
    assert "support, version 1" in halka("adapters add run/adapter support --store adapters").stdout
    assert parsed("adapters add run/adapter support --store adapters")["version"] == 2
    halka("adapters add run/adapter other --store adapters")
    assert "support: live" in halka("adapters tag support live --store adapters").stdout
    assert "2 adapters in adapters" in halka("adapters list --store adapters").stdout
    (found,) = parsed("adapters list --store adapters --tag live")
    assert (found["name"], found["version"], found["versions"], found["method"]) == ("support", 2, 2, "lora")
    assert parsed("adapters remove support --version 1 --store adapters")["versions"] == [2]
    (Path("adapters") / "other" / "1" / "adapter_config.json").write_text("{")
    assert "1 of 2 versions are damaged" in halka("adapters verify --store adapters", code=1).stderr
    halka("adapters remove other --store adapters")
    assert parsed("adapters verify --store adapters") == {"versions": 1, "damaged": [], "cleaned": 0}
    assert "there is no folder nope" in failure("adapters list --store nope")
    assert "cannot be a name in a store" in failure("adapters add run/adapter ../x --store adapters")
    assert "holds no adapter 'supp': did you mean support" in failure("adapters tag supp x --store adapters")


def test_a_terminated_comparison_ends_its_runs(experiment, monkeypatch):
    ended = []

    def run(experiment, folder, *, retry=False):
        try:
            yield Event("started", "LoRA, seed 0", 0, 2)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            ended.append(True)

    monkeypatch.setattr("halka.studies.compare.run", run)
    own = signal.getsignal(signal.SIGTERM)
    assert "goes on with what is missing" in halka("compare experiment.yaml -o results", code=130).stderr
    assert ended
    assert signal.getsignal(signal.SIGTERM) is own


def test_a_wrong_experiment_is_one_line(here):
    Path("experiment.yaml").write_text("name: e\ntask: support\nmethods: []\nsede: 1\n")
    assert "sede" in failure("compare experiment.yaml -o results")
    assert "EXPERIMENT: there is no file nope.yaml" in failure("compare nope.yaml -o results")
