"""The benchmark scripts use names that exist, and say at their top what they measure and how they are run."""

from __future__ import annotations

import ast
import importlib
import json
import math
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
import yaml

import halka
from result_tables.machine import origins
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(FOLDER.rglob("*.py"))
SHARED = {
    "side_by_side",
    "fixed_batches",
    "best_rates",
    "advisor_case",
    "gpu_sides",
    "advisor_cases",
    "advisor_later_cases",
    "growth_passages",
    "engine_load",
    "serving_client",
    "replicas_gateway",
    "replicas_load",
    "replicas_servers",
}  # modules of the scripts
COMMITS_ELSEWHERE = {
    "advisor": {"86ad5256a087-dirty"},
    "classification": {"4c4fe7bb67e7", "76d90615c001", "aa417ae94083"},
    "engine_exactness.json": {"0df845a50d26"},
    "experts.json": {"29ba5715098b"},
    "handbook.json": {"b16c4fca2267"},
    "llama_cpp.json": {"a779cbca0b17"},
    "merging.json": {"cf8320094af8"},
    "page.json": {"8e9872a61489-dirty"},
    "speed.json": {"990638acb0e9-dirty"},
    "tried": {"none"},
}
"""Commits of results that history lacks, by file or folder: none is added, and what is measured again goes."""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_what_a_script_imports_of_halka_exists(path):
    """Imports within functions, too, and names by their way from `halka`; nothing of the script is run."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "halka":
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}")
        elif isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names if alias.name.partition(".")[0] == "halka"):
                importlib.import_module(name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "halka":
            assert hasattr(importlib.import_module("halka"), node.attr), f"line {node.lineno}: halka.{node.attr}"


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.parent == FOLDER], ids=lambda path: path.stem)
def test_a_script_says_what_it_measures_and_its_command(path):
    words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert words
    assert path.stem in SHARED or f"python benchmarks/{path.name}" in words


def imported(name: str):
    """A fixture: the module of that name among the benchmarks."""

    @pytest.fixture
    def module(monkeypatch):
        monkeypatch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)

    return module


every, reading, gpu, laws, best_rates = map(imported, ("all", "reading", "gpu", "laws", "best_rates"))


def test_pieces_name_scripts_and_experiments_that_exist(every):
    for name, piece in every.PIECES.items():
        if piece.script == "halka":
            [experiment] = [word for word in piece.arguments if word.endswith(".yaml")]
            assert (FOLDER.parent / experiment).exists(), name
        else:
            words = (FOLDER / piece.script).read_text(encoding="utf-8")
            flags = [word for word in (*piece.arguments, *piece.tools) if word.startswith("--")]
            assert all(f'"{flag}"' in words for flag in flags), name


def recorded_commits(content: object) -> Iterator[str | None]:
    """Each commit that a result's JSON names, at any depth."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from [value] if name == "commit" else value if name == "commits" else recorded_commits(value)
    elif isinstance(content, list):
        for value in content:
            yield from recorded_commits(value)


def git(*arguments: str) -> str:
    command = ["git", "-C", str(FOLDER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_each_result_is_of_a_commit_that_history_has():
    """Whoever checks it out has the code that measured; those in COMMITS_ELSEWHERE are to be measured again."""
    try:
        git("ls-files", "--error-unmatch", "results")  # else it is another repository that the tree lies in
        if git("rev-parse", "--is-shallow-repository") == "true":
            pytest.skip("the clone has no history")
        history = git("rev-list", "HEAD").split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no git repository")
    elsewhere = dict[str, set[str]]()
    for path in sorted((FOLDER / "results").rglob("*.json")):
        for commit in recorded_commits(json.loads(path.read_text(encoding="utf-8"))):
            if commit is None or not any(own.startswith(commit) for own in history):
                name = path.relative_to(FOLDER / "results").parts[0]
                elsewhere.setdefault(name, set()).add(commit or "none")
    assert elsewhere == COMMITS_ELSEWHERE, "measure with a clean checkout of main; take out what was measured again"


def test_each_result_says_what_it_ran_on_and_beside(every, tmp_path):
    def setup(commit, cpu="Intel(R) Xeon(R) Processor"):
        return {"machine": {"cpu": cpu, "threads": 2}, "versions": {"torch": "2.13.0+cpu"}, "commit": commit}

    (tmp_path / "speed.json").write_text(json.dumps({"lora": {"setup": setup("a1")}, "full": [setup("b2", "EPYC")]}))
    for name in ("snips", "laws/rates"):
        (tmp_path / name / "runs").mkdir(parents=True)
        (tmp_path / name / "runs" / "one.json").write_text(json.dumps(setup(None)))
    (tmp_path / "laws.json").write_text(json.dumps(setup("a1")))  # verdicts on those runs
    assert [row[:6] for row in origins(tmp_path)[1:]] == [
        ["`laws`", "Intel Xeon", "2", "2.13.0", "–", "not recorded"],
        ["`snips`", "Intel Xeon", "2", "2.13.0", "–", "not recorded"],
        ["`speed.json`", "EPYC, Intel Xeon", "2", "2.13.0", "a1, b2", "not recorded"],
    ]
    speed = {when: {"gflops": 60.4, "gflops_fp32": 40.0, "gigabytes": 9.0} for when in ("before", "after")}
    ran = {"result": every.PIECES["speed"].result, "commit": "b2", "cores_of_others": 0.02, "speed": speed}
    (tmp_path / "measured.json").write_text(
        json.dumps({"speed": ran, "engine-loads": {**ran, "result": "engine.json"}})
    )
    assert origins(tmp_path)[-1][5:] == ["0.02", "60 to 60", "40 to 40", "9 to 9"]


def test_a_piece_names_what_it_writes(every):
    names = ("advisor-minutes", "snips", "quantised", "quantised-steps", "laws/rates", "packing-steps", "engine-loads")
    files = ["advisor", "snips", "quantised", "quantised.json", "laws", "packing_steps.json", "engine.json"]
    assert [every.PIECES[name].result for name in names] == files
    assert fnmatch("gpu_training_8b.json", every.PIECES["gpu"].result)


def test_each_result_has_a_piece_that_brings_it_up_to_date(every):
    patterns = {piece.result for piece in every.PIECES.values()}
    once = {"measured.json", "tried", "handbook.json", "laws.json"}
    results = {path.name for path in (FOLDER / "results").iterdir() if path.suffix != ".svg"} - once
    assert [name for name in results if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    within = {runs.parent.relative_to(FOLDER / "results").as_posix() for runs in FOLDER.glob("results/*/*/runs")}
    assert within <= {*every.STUDIES}


def test_a_variant_changes_what_it_names_and_nothing_else(reading):
    settings = {"passages": 3, "lessons": {"draws": 4, "order": "found"}, "train": {"steps": 9, "batch_size": 4}}
    changes = {"lessons": {"order": "shuffled"}, "train": {"batch_size": None, "batch_tokens": 64}}
    assert reading.merged(settings, changes) == {
        "passages": 3,
        "lessons": {"draws": 4, "order": "shuffled"},
        "train": {"steps": 9, "batch_tokens": 64},
    }
    assert settings["train"] == {"steps": 9, "batch_size": 4}


def test_a_file_of_variants_has_ablations_that_differ(reading, every, tmp_path):
    for split in ("documents", "train", "validation", "development"):
        (tmp_path / f"{split}.jsonl").write_text('{"name": "d", "text": "It is.", "question": "?", "answer": "It"}\n')
    for name in every.READING:
        content = yaml.safe_load((reading.VARIANTS / f"{name}.yaml").read_text())
        like = (reading.VARIANTS / content["like"]).read_text()
        (tmp_path / content["like"]).write_text(re.sub(r"\.\./\.\./data/rag/[\w-]+/", "", like))
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        ablations = reading.variants_in(tmp_path / f"{name}.yaml")
        assert len({ablation.model_dump_json() for ablation in ablations.values()}) == len(content["variants"])
        assert all(ablation.arms in (("tuned",), ("tuned-full",)) for ablation in ablations.values())


def read_as(*texts: str, seed: int) -> dict:
    """A variant's result of a seed, whose answers to questions with the answer "a" are these texts."""
    rows = [
        {"question": "?", "answers": ["a"], "text": text, "passages": 1, "gold": [1], "best": 1.0} for text in texts
    ]
    train = {"validation": 0.5, "best_step": 40, "seconds": 60.0}
    changes = {"asked": [{"follows": True}, {"follows": False}]}
    return {"passages": rows, "form": "A: {answer}", "seed": seed, "commit": "c", "train": train} | {
        "changes": changes,
        "injections": [{"obeyed": False}],
    }


def test_variants_are_compared_by_the_seeds_that_both_have(reading):
    first = [read_as("A: a", "A: b", seed=0), read_as("A: a", "A: a", seed=1)]
    later = [read_as("A: a", "A: b", seed=0)]  # its other seed has not finished
    row = reading.row(later, first)
    assert (row["beside"]["value"], row["beside"]["seeds"], row["seeds"]) == (0, [0], [0])
    assert reading.row(first, later)["beside"]["value"] == 0
    assert reading.row([read_as("A: a", "A: a", seed=2)], first)["beside"] is None
    rows = {"first": reading.row(first, first), "later": row, "other": reading.row([read_as("A: a", seed=2)], first)}
    head, _, *lines = reading.table(rows).splitlines()
    assert "| Exact, beside the first | By seeds |" in head
    assert head.endswith("| All its seeds |")
    assert [line.split(" | ")[2] for line in lines] == ["–", "0", "none in common"]
    assert lines[0].startswith("| first | – | – | 75.0 % |")
    assert lines[0].endswith("| 0, 1 |")
    assert lines[1].startswith("| later | +0.0 [")
    assert lines[2].startswith("| other | – | none in common |")


def test_variants_are_compared_question_by_question(reading):
    first = [read_as("A: a [1]", "A: b", "A: b", "A: b", seed=0), read_as("A: a", "A: a", "A: b", "A: b", seed=1)]
    better = [read_as("A: a", "A: a", "A: a", "A: b", seed=seed) for seed in (0, 1)]
    row = reading.row(better, first)
    assert row["exact"] == 0.75
    assert row["beside"]["value"] == pytest.approx(0.75 - 0.375)
    assert row["beside"]["low"] < row["beside"]["value"] < row["beside"]["high"]
    assert (row["follows"], row["obeys"], row["seeds"]) == (0.5, 0, [0, 1])
    assert reading.row(first, first)["beside"]["value"] == 0
    assert "| better | +37.5 [" in reading.table({"first": reading.row(first, first), "better": row})


def test_what_was_cut_off_or_is_of_other_code_is_due(every):
    piece, here = every.PIECES["speed"], {"whole": True, "commit": "HEAD", "cores_of_others": 0.02}
    assert every.is_due(piece, None)
    assert every.is_due(piece, {**here, "whole": False})
    assert every.is_due(piece, {**here, "commit": "0" * 40})


def test_what_keeps_its_parts_may_take_several_calls_and_all_else_fits_into_one(every):
    tofu, merging = every.PIECES["rag_tofu_converged"], every.PIECES["merging"]
    assert tofu.minutes > 90 > merging.minutes
    assert every.fits(tofu, 600)
    assert not every.fits(tofu, 30)
    assert not every.fits(merging, 600)
    assert every.fits(merging, 60 * 90)
    assert every.listed(tofu, 90) == "385 min, in 5 calls"
    assert every.listed(merging, 10) == " 40 min"
    assert [name for name, piece in every.PIECES.items() if not piece.keeps and piece.minutes > 90] == []


def test_a_piece_that_the_time_cuts_off_goes_on_in_the_next_call(tmp_path):
    """Also from a shell that has started it in the background, where SIGINT is ignored unless somebody wants it."""
    script, kept = tmp_path / "study.py", tmp_path / "kept"
    script.write_text(
        "import pathlib, sys, time\n"
        f"kept = pathlib.Path({str(kept)!r})\n"
        "first = not kept.exists()\n"
        "kept.touch()\n"
        "time.sleep(60 if first else 0)\n"
        "kept.write_text('done')\n"
    )
    calls = (
        "import importlib, json, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "every = importlib.import_module('all')\n"
        f"piece = every.Piece({os.path.relpath(script, FOLDER)!r}, timed=False, keeps=True)\n"
        "started = time.monotonic()\n"
        "wholes = [every.measured(piece, seconds)['whole'] for seconds in (5, 50)]\n"
        "print(json.dumps([wholes, time.monotonic() - started]))\n"
    )
    path = os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, "-c", calls],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    *lines, last = ended.stdout.splitlines()
    wholes, seconds = json.loads(last)
    assert wholes == [False, True]
    assert seconds < 50
    assert [", and was cut off" in line for line in lines] == [True, False]
    assert kept.read_text() == "done"


def test_what_was_timed_beside_other_programs_is_due(every, monkeypatch):
    monkeypatch.setattr(every.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0))  # no other code
    beside = {"whole": True, "commit": "HEAD", "cores_of_others": 0.8}
    assert every.is_due(every.PIECES["speed"], beside)
    assert not every.is_due(every.PIECES["speed"], {**beside, "cores_of_others": 0.02})
    assert not every.is_due(every.PIECES["plans"], beside)  # which times nothing


@pytest.fixture
def parts(gpu, tmp_path):
    """A tiny base in parts."""
    tokenizer = chatml_tokenizer()
    tiny("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    gpu.split(tmp_path / "base", tmp_path / "parts", size=200_000)
    return tmp_path / "parts"


def test_the_gpu_s_pieces_run_with_tiny_shapes_on_a_processor(gpu, parts, tmp_path, monkeypatch):
    """By `main` and its workers, one of them in a process; what a piece that fails has measured is kept."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setitem(gpu.SIZES, True, replace(gpu.SIZES[True], steps=1))

    def start(arguments):
        if arguments[0] == "decoding":
            return gpu.in_a_process(arguments)
        assert gpu.main(arguments) == 0
        return "out of patience" if arguments[0] == "training-8b-nf4" else ""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's and transformers' own
        failed = gpu.main(["--dry", "--out", str(tmp_path), "--weights", str(parts)], start)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"  # one card for all sides
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.glob("gpu_*.json")}
    assert [name for name, result in results.items() if not result["whole"]] == ["gpu_training_8b_nf4"]
    assert (failed, results["gpu_training_8b_nf4"]["error"]) == (1, "out of patience")
    measured = {name.removeprefix("gpu_"): result["measured"] for name, result in results.items()}
    assert measured.keys() == {piece.replace("-", "_") for piece in gpu.PIECES}
    assert [(len(it["gpu"]), it["difference"]) for it in measured["losses"].values()] == [(5, 0)] * 2
    assert {*measured["training_8b"]} == {"full", "ragged", "shared", "full 2 × 4096"}
    assert {*measured["training_8b"]["ragged"]["halka_to"]} == {"peft with Trainer"}
    assert measured["training_8b_nf4"]["ragged"]["halka"]["tokens_per_second"] > 0
    assert measured["decoding_int8"]["3"]["base"]["of_bf16"] > 0
    assert {*measured["decoding"]["3"]} == {"base", "one adapter", "an adapter a row", "families"}
    assert all(case["estimated"]["held"] >= case["estimated"]["tensors"] for case in measured["estimator"])


def test_memory_that_runs_out_is_a_result(gpu):
    """Beside a side that fits, whose first round of the batches, in which it compiles, no speed counts."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")

    def fits(_, batches, *__, **___):
        assert batches[:3] == batches[3:]
        return [100.0, 200.0, 300.0, 301.0, 303.0, 307.0]

    *_, result = gpu.training(gpu.SIZES[True], "8b", sides={"halka": fits, "peft with Trainer": full})
    assert result["full"]["peft with Trainer"] == {"out of memory": "CUDA out of memory. Tried to allocate 2.00 GiB."}
    speeds = [result["full"]["halka"][f"tokens_per_second{of}"] for of in ("", "_of_the_median_step")]
    assert (speeds, result["full"]["halka_to"]) == ([3 * 32 / 7, 16], {})


def test_a_base_is_joined_from_its_parts(gpu, parts):
    assert len([*parts.glob("base.tar.0*")]) > 2
    with gpu.joined(parts) as folder:
        for file in (parts.parent / "base").iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes()
    (parts / "base.tar.001").unlink()
    with pytest.raises(halka.HalkaError, match="has not all parts of a base"), gpu.joined(parts):
        pass


def sweep(best, floor=0.1, seeds=(0, 1, 2)):
    """A method's losses by seed and rate: a parabola over the logarithm of the rate, a little other for each seed."""
    tried = [best * 2.0**step for step in (-1.3, -0.3, 0.7)]
    return {
        seed: {rate: floor + 0.05 * math.log(rate / best / 1.02**seed) ** 2 + seed / 1000 for rate in tried}
        for seed in seeds
    }


def apart(*bests):
    """A method's losses whose best rate is another for each seed."""
    tried = [max(bests) * 2.0**step for step in (-2, -1, 0, 1)]
    return {seed: {rate: math.log(rate / best) ** 2 for rate in tried} for seed, best in enumerate(bests)}


@pytest.mark.parametrize(
    ("name", "swept", "verdict"),
    [
        ("ten times", {"full": sweep(2e-4), "r16, α 32": apart(1.8e-3, 2e-3, 2.2e-3)}, "held"),
        ("ten times", {"full": sweep(2e-4), "r16, α 32": sweep(3e-3)}, "did not hold"),
        ("fifteen times", {"full": sweep(2e-4), "r16, α 32": apart(2.7e-3, 3e-3, 3.3e-3)}, "held"),
        ("fifteen times", {"full": sweep(2e-4), "r16, α 32": sweep(2e-3)}, "did not hold"),
        ("ten times", {"full": sweep(2e-4), "r16, α 32": sweep(8e-4)}, "did not hold"),
        ("fixed alpha", {"r1, α 32": sweep(2e-3), "r64, α 32": sweep(2.2e-3)}, "held"),
        ("fixed alpha", {"r1, α 32": sweep(2e-3), "r64, α 32": sweep(2e-4)}, "did not hold"),
        ("ten times", {"full": sweep(2e-4), "r16, α 32": apart(1e-3, 1.3e-3, 1.6e-3)}, "cannot be told here"),
        (
            "places",
            {"attention r42": sweep(2e-3, 0.2), "MLP r26": sweep(2e-3), "all r16": sweep(2e-3)},
            "held",
        ),
        (
            "places",
            {"attention r42": sweep(2e-3), "MLP r26": sweep(2e-3), "all r16": sweep(2e-3)},
            "cannot be told here",
        ),
    ],
)
def test_laws_are_judged_by_their_rules(laws, name, swept, verdict):
    law = next(law for law in laws.LAWS if law.name == name)
    finding = laws.judged(law, swept)
    assert (finding.verdict, finding.seeds) == (verdict, 3)
    assert "nan" not in finding.finding


def test_a_small_difference_of_rates_is_not_called_none(laws):
    law = next(law for law in laws.LAWS if law.name == "fixed alpha")
    small = laws.judged(law, {"r1, α 32": sweep(2e-3), "r64, α 32": sweep(2.2e-3)})
    none = laws.judged(law, {"r1, α 32": sweep(2e-3), "r64, α 32": apart(1.6e-3, 2e-3, 2.5e-3)})
    assert "a difference, though a small one" in small.finding
    assert "a difference" not in none.finding


def test_a_batch_law_sees_a_gap_that_grows(laws):
    law = next(law for law in laws.LAWS if law.name == "batches")
    floors = {f"full, batch {size}": 0.1 for size in (4, 16, 64)} | {
        f"LoRA r16, batch {size}": floor for size, floor in ((4, 0.11), (16, 0.15), (64, 0.2))
    }
    assert laws.judged(law, {label: sweep(2e-3, floor) for label, floor in floors.items()}).verdict == "held"
    level = {label: sweep(2e-3) for label in floors}
    assert laws.judged(law, level).verdict == "cannot be told here"


def test_a_batch_law_sees_a_gap_that_grows_with_every_seed(laws):
    """What the seeds differ by is far more than the growth, and the same for both."""
    law = next(law for law in laws.LAWS if law.name == "batches")
    losses = {label: sweep(2e-3) for label in law.needs}
    for size, growth in ((4, 0), (16, 0.01), (64, 0.02)):
        label = f"LoRA r16, batch {size}"
        losses[label] = {
            seed: {rate: loss + growth + seed / 10 for rate, loss in losses[label][seed].items()} for seed in (0, 1, 2)
        }
    finding = laws.judged(law, losses)
    assert finding.verdict == "held"
    assert finding.finding.endswith("with 64 that is 0.020 [0.020 to 0.020] higher than with 4")


def test_nothing_is_told_where_the_best_rate_is_an_edge(laws):
    edge = {seed: {1e-3: 0.1, 2e-3: 0.2, 4e-3: 0.3} for seed in (0, 1, 2)}
    law = next(law for law in laws.LAWS if law.name == "fixed alpha")
    finding = laws.judged(law, {"r1, α 32": edge, "r64, α 32": edge})
    assert finding.verdict == "cannot be told here"
    assert finding.finding.endswith("at an edge of the rates tried: r1, α 32 and r64, α 32")


def test_the_bounds_of_a_loss_that_is_lower_are_of_how_much_lower(laws):
    shown = laws._by(laws.Interval(-0.01, -0.03, 0.01))
    assert shown == "0.010 [−0.010 to 0.030] lower"
    assert laws._by(laws.Interval(0.02, 0.01, 0.03)) == "0.020 [0.010 to 0.030] higher"


def test_a_law_waits_for_its_sweeps(laws):
    assert laws.judged(laws.LAWS[0], {}) is None
    assert laws.judged(laws.LAWS[0], {"full": sweep(2e-4), "r16, α 32": sweep(2e-3, seeds=(0,))}) is None
    assert (
        laws.judged(laws.LAWS[0], {"full": sweep(2e-4, seeds=(0, 1)), "r16, α 32": sweep(2e-3, seeds=(1, 2))}) is None
    )


def test_laws_name_methods_of_their_sweeps(laws):
    for law in laws.LAWS:
        experiment = laws.read_experiment(FOLDER / "experiments" / "laws" / f"{law.sweep}.yaml")
        assert {*law.shown} <= {entry.title() for entry in experiment.methods}


def bowl(best: float, rates: tuple[float, ...], floor: float = 0.1) -> dict[float, float]:
    """Losses of a parabola over the logarithm of the rate, lowest at `best`."""
    return {rate: floor + 0.05 * math.log(rate / best) ** 2 for rate in rates}


@pytest.mark.parametrize("best", [1.2e-3, 2e-3, 2.7e-3])
def test_the_best_rate_lies_between_those_tried(best_rates, best):
    for rates in ((5e-4, 1e-3, 2e-3, 4e-3), (3e-4, 1e-3, 2e-3, 8e-3)):
        assert best_rates.best_rates({0: bowl(best, rates)}) == {0: pytest.approx(best)}


def test_at_an_edge_the_best_rate_is_the_edge(best_rates):
    lower = {0: bowl(1e-4, (1e-3, 2e-3, 4e-3))}
    assert (best_rates.best_rates(lower), best_rates.at_edge(lower)) == ({0: 1e-3}, True)
    level = {0: {1e-3: 0.1, 2e-3: 0.1, 4e-3: 0.1}}
    assert (best_rates.best_rates(level), best_rates.at_edge(level)) == ({0: 1e-3}, True)
    assert not best_rates.at_edge({0: bowl(2e-3, (1e-3, 2e-3, 4e-3))})


def test_a_seeds_best_rate_may_lie_a_step_beyond_those_around_the_best_in_the_mean(best_rates):
    rates = (1e-3, 2e-3, 4e-3)
    losses = {seed: bowl(2e-3, rates) for seed in range(4)}
    losses |= {4: bowl(8e-4, rates), 5: dict(zip(rates, (0.1, 0.112, 0.115), strict=True))}
    assert best_rates.best_rates(losses) == pytest.approx({**dict.fromkeys(range(4), 2e-3), 4: 8e-4, 5: 5e-4})


def test_a_ratio_is_of_seeds_and_its_interval_holds_them(best_rates):
    one = {0: bowl(2e-3, (1e-3, 2e-3, 4e-3)), 1: bowl(2.2e-3, (1e-3, 2e-3, 4e-3)), 2: bowl(1e-3, (1e-3, 2e-3))}
    other = {0: bowl(2e-4, (1e-4, 2e-4, 4e-4)), 1: bowl(2e-4, (1e-4, 2e-4, 4e-4))}
    ratio = best_rates.rate_ratio(one, other)
    assert ratio.value == pytest.approx(math.sqrt(10 * 11))
    assert ratio.low < 10 < 11 < ratio.high


def test_a_gap_is_at_each_ones_best_rate(best_rates):
    one = {seed: bowl(2e-3, (1e-3, 2e-3), floor=0.3 + seed / 100) for seed in (0, 1, 2)}
    other = {seed: bowl(1e-3, (1e-3, 2e-3), floor=0.1 + seed / 100) for seed in (0, 1, 2)}
    assert best_rates.loss_gaps(one, other) == pytest.approx({0: 0.2, 1: 0.2, 2: 0.2})


def test_the_best_rate_is_one_that_every_seed_has_tried(best_rates):
    assert best_rates.best_rate({0: {1e-3: 0.3, 2e-3: 0.2, 4e-3: 0.1}, 1: {1e-3: 0.3, 2e-3: 0.2}}) == 2e-3


def test_one_seed_has_no_bounds(best_rates):
    alone = best_rates.over_seeds([0.5])
    assert (alone.value, alone.low, alone.high) == (0.5, -math.inf, math.inf)


def test_losses_are_of_finished_runs_with_a_finite_loss(best_rates):
    runs = [
        {"status": "done", "lr": 1e-3, "seed": 0, "validation_loss": 0.5},
        {"status": "done", "lr": 2e-3, "seed": 0, "validation_loss": None},
        {"status": "failed", "lr": 4e-3, "seed": 0},
        {"status": "done", "lr": 1e-3, "seed": 1, "validation_loss": 0.4},
    ]
    assert best_rates.losses_of(runs) == {0: {1e-3: 0.5}, 1: {1e-3: 0.4}}
