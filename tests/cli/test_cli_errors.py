"""Every error of a command ends as one line on stderr and an exit code; unknown options lead to the right ones."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

from commands import ROOT, failure, halka, process
from halka.cli.command import Command, Commands, Failed, explain, say, show
from halka.training import TrainConfig
from halka.util import errors
from halka.util.suggest import suggest
from halka.util.text import columns

ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
WORK_FAILED = {errors.TrainingError, errors.DivergedError, errors.LostRankError, errors.OutOfMemoryError}
BUG = "This is a bug, in Halka or in a library that it uses: HALKA_DEBUG=1 shows where; please report"


def raising(error: BaseException) -> typer.Typer:
    """A command line like Halka's, whose command `fail` raises this error."""
    failing = typer.Typer(cls=Commands)

    @failing.callback()
    def several() -> None: ...

    @failing.command(cls=Command)
    def fail() -> None:
        raise error

    return failing


def run_by_shell(command: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A command in a process that a shell starts, after other commands of the shell."""
    line = f"{before}exec {shlex.quote(sys.executable)} -m halka {command}"
    return subprocess.run(["sh", "-c", line], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})


@pytest.mark.parametrize("command", ["methods --json >&-", "methods --json <&- >&- 2>&-"])
def test_a_stream_may_be_closed(command):
    done = run_by_shell(command)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ERRORS)
def test_our_errors_are_said_as_they_are(kind):
    commands = raising(kind("rank is 0:\nchoose 1"))
    assert failure("fail", code=1 if kind in WORK_FAILED else 2, commands=commands) == "rank is 0: choose 1"


@pytest.mark.parametrize(
    ("error", "shown", "code"),
    [
        (ValueError("zip() argument 2 is shorter"), f"ValueError: zip() argument 2 is shorter. {BUG}", 1),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), "UnicodeDecodeError: ", 1),
        (KeyError("oh\nno"), r"KeyError: 'oh\nno'. This is a bug", 1),
        (AssertionError(), f"AssertionError. {BUG}", 1),
        (RuntimeError("shapes"), f"RuntimeError: shapes. {BUG}", 1),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
            "out of memory (CUDA out of memory): choose a smaller base or --quantize nf4, another --device",
            1,
        ),
        (MemoryError(), "out of memory (the machine has no more): choose a smaller base", 1),
        (FileNotFoundError(2, "No such file", "a.txt"), "a.txt: no such file", 2),
        (FileNotFoundError("No such file: a.safetensors"), "No such file: a.safetensors", 1),
        (OSError("the disk of HF.co is gone"), "the disk of HF.co is gone", 1),
        (TimeoutError(), "TimeoutError", 1),
        (
            OSError(28, "No space left on device", "a"),
            "a: no space left on device: make room there, or name another",
            1,
        ),
        (Failed("two of three failed"), "two of three failed", 1),
        (typer.Abort(), "aborted", 1),
        (typer.BadParameter("no number"), "Invalid value: no number: see `halka fail --help`", 2),
    ],
)
def test_other_errors_by_their_kind(error, shown, code):
    assert failure("fail", code=code, commands=raising(error)).startswith(shown)
    assert explain(error)[1] == code


def test_nothing_that_is_shown_steers_a_terminal(capsys):
    table = columns("a", "b")
    table.add_row("x\x1b[31my", "z\x9b")
    show("x\x1by", table)
    say("x\x1by")
    shown = capsys.readouterr()
    assert not any(control in shown.out + shown.err for control in "\x1b\x9b")
    assert "x[31my  z" in shown.out


def test_a_working_folder_that_was_removed_is_named(tmp_path):
    folder = shlex.quote(str(tmp_path))
    done = run_by_shell("evaluate --base base --data no.jsonl", f"cd {folder} && rmdir {folder} && ")
    assert done.returncode == 2
    assert done.stderr == "Error: the folder that the command runs in was removed: change to another one\n"


def test_ctrl_c_is_one_line():
    result = halka("fail", code=130, commands=raising(KeyboardInterrupt()))
    assert (result.stdout, result.stderr) == ("", "Stopped.\n")


def test_a_traceback_only_when_asked_for(monkeypatch):
    command = "methods lorra"
    assert "Traceback" not in halka(command, code=2).stderr
    assert "Traceback" in halka(f"{command} --debug", code=2).stderr
    assert "Traceback" in halka(f"--debug {command}", code=2).stderr
    monkeypatch.setenv("HALKA_DEBUG", "1")
    assert "Traceback" in halka(command, code=2).stderr


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("train --learning-rate 0.1", "no such option --learning-rate: did you mean --lr? See `halka train --help`"),
        ("train --lora_alpha 8", "no such option --lora_alpha: did you mean --alpha? See"),
        ("train --rnak 8", "no such option --rnak: did you mean --rank? See"),
        ("evaluate --model x", "no such option --model: did you mean --base? See `halka evaluate --help`"),
        ("docs search faq why --top-k=3", "no such option --top-k: did you mean --count? See `halka docs search"),
        ("ask why --top-k 3", "no such option --top-k: did you mean --passages? See"),
        ("generate --foo", "no such option --foo: see `halka generate --help`"),
        ("merge --adapter lora", "no such option --adapter: write [NAME=]FOLDER... without a flag: see `halka merge"),
        ("estimate --base base", "no such option --base: write BASE without a flag: see `halka estimate --help`"),
        ("generate --base", "Option '--base' requires an argument: see `halka generate --help`"),
        ("trian", "No such command 'trian'. Did you mean 'train'? See `halka --help`"),
    ],
)
def test_an_unknown_option_leads_to_the_right_one(command, shown):
    assert failure(command).startswith(shown)


def test_a_name_of_another_library_comes_before_a_close_spelling():
    assert suggest("learning_rate", ["length", "lr"]) == "lr"
    assert suggest("lenght", ["length", "lr"]) == "length"
    assert suggest("learning_rate", ["rank"]) is None


def test_settings_that_others_have_lead_to_what_halka_has():
    for name, shown in {
        "template": "the base's own chat template is used",
        "packing": "batches are packed already",
        "optim": "the optimiser is AdamW",
        "report-to": "a run writes each step into metrics.jsonl",
        "neftune_noise_alpha": "Halka does not have it; docs/coming-from-others.md says why",
        "deepspeed": "--devices starts processes",
        "push_to_hub": "`hf upload` takes",
        "save_total_limit": "a run keeps its last checkpoint",
        "additional_target": "--join 'method: modules, targets: […]' (halka.Joint in Python)",
    }.items():
        assert failure(f"train --{name} x").startswith(f"no such option --{name}: {shown}")
    with pytest.raises(errors.HalkaError, match="packing: there is no such setting: batches are packed already"):
        TrainConfig(packing=True)  # pyright: ignore[reportCallIssue]


def test_what_a_stream_cannot_write_is_escaped(tmp_path):
    running = process("adapters show দ", tmp_path, PYTHONIOENCODING="latin-1")
    assert "\\u09a6: check the path" in running.communicate()[1]


@pytest.mark.parametrize("content", [b"{no json", b"[1, 2]", b"null", b"caf\xe9", b"", b"[" * 100_000])
def test_damaged_files_are_named(here, content):
    """No library's error on what a file holds comes through as a bug."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        shutil.copytree("base", "damaged")
        Path("damaged", name).write_bytes(content)
        assert "damaged" in failure("generate --base damaged --max-new-tokens 1 Hi")
        shutil.rmtree("damaged")
    Path("damaged/faq").mkdir(parents=True)
    for name in ("damaged.yaml", "damaged.jsonl", "damaged.csv", "damaged/faq/collection.json"):
        Path(name).write_bytes(content)
    train = "train --base base -o new --steps 1"
    for command in (
        "docs list faq --collections damaged",
        f"{train} --task damaged.yaml",
        "train --many damaged.yaml",
        "evaluate --base base --task damaged.yaml",
        "compare damaged.yaml -o new",
        "data preview damaged.csv --base base",
        f"{train} --data damaged.jsonl",
    ):
        assert "damaged" in failure(command)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("train --config base", "base is a folder: name a file in it"),
        ("train --config latin.yaml", "latin.yaml is not UTF-8 text (invalid continuation byte): save it as UTF-8"),
        ("adapters show no_card", "FOLDER: no_card/halka.json is not a Card that this version reads: it holds list"),
        ("adapters convert run/adapter lora", "INTO: lora exists and holds adapter_config.json: name a new folder"),
        ("adapters convert run/adapter data.jsonl", "INTO: data.jsonl is a file: name a new folder"),
        ("docs add faq nope.md", "PATH: there is no file or folder nope.md: check the path, it is seen from"),
        ("docs add faq prose.txt --collections data.jsonl", "--collections: data.jsonl is a file: name a folder"),
        ("docs list --collections data.jsonl", "--collections: data.jsonl is a file: name a folder"),
        ("docs list faq --collections data.jsonl", "--collections: data.jsonl is a file: name a folder"),
        ("lm-eval", "lm-eval needs arguments: give at least --model_args base=NAME and --tasks NAME"),
    ],
)
def test_a_wrong_path_is_named_before_any_work(here, kinds, command, shown):
    Path("latin.yaml").write_bytes(b"base: caf\xe9 au lait\n")
    shutil.copytree("lora", "no_card")
    Path("no_card/halka.json").write_text("[]")
    before = Path("lora/adapter_model.safetensors").read_bytes()
    assert failure(command).startswith(shown)
    assert not Path("collections").exists()
    assert Path("lora/adapter_model.safetensors").read_bytes() == before
