"""`halka evaluate` and `generate`: scores, answers, an adapter for each row, from folders and stores."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands import ROOT, failure, halka, parsed
from full_disk import file_limit
from halka.cli.command import emit
from halka.cli.evaluate import scores_file, task_of
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer


def test_predictions_do_not_write_over_what_is_read(here):
    Path("own.jsonl").write_text(Path("data.jsonl").read_text())
    before = Path("own.jsonl").read_text()
    told = failure("evaluate --base base --data own.jsonl -o own.jsonl")
    assert "--out: own.jsonl would overwrite an input" in told
    assert Path("own.jsonl").read_text() == before
    assert "nothing can be written to /proc" in failure("evaluate --base base --data own.jsonl -o /proc/x.jsonl")
    Path("link.jsonl").symlink_to("/proc/x.jsonl")
    assert "nothing can be written to /proc" in failure("evaluate --base base --data own.jsonl -o link.jsonl")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    assert "--perplexity: latin.txt is not UTF-8" in failure("evaluate --base base --perplexity latin.txt")
    assert "--split train is for --task" in failure("evaluate --base base --data own.jsonl --split train")


EVALUATE = "evaluate --base base --dtype float32 --max-new-tokens 3"


def test_evaluate(here):
    result = halka(f"{EVALUATE} --adapter run/adapter --data data.jsonl --limit 4 -o p.jsonl --perplexity prose.txt")
    for told in ("exact_match", "95 % interval", "over 4 examples of data", "predictions in p.jsonl", "perplexity"):
        assert told in result.stdout
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert lines[0].keys() == {"where", "prompt", "references", "prediction", "adapter"}
    scores = json.loads(Path("p.scores.json").read_text())
    assert scores["scores"].keys() == {"exact_match", "token_f1"}
    assert (scores["base"], scores["adapter"], scores["perplexity"].keys()) == (
        *("base", "run/adapter"),
        {"base", "adapter", "change"},
    )


def test_scores_are_shown_where_there_is_no_room_for_the_predictions(here):
    with file_limit(100):
        result = halka(f"{EVALUATE} --data data.jsonl --limit 4 -o p.jsonl", code=1)
    assert "exact_match" in result.stdout
    assert "predictions in" not in result.stdout
    assert "Error: " in result.stderr
    assert "p.jsonl: file too large: make room there" in result.stderr


def test_predictions_are_kept_where_nobody_reads_what_is_shown(here):
    """As behind `| head`, or on a log that is full."""
    command = [sys.executable, "-m", "halka", *f"{EVALUATE} --data data.jsonl --limit 4 -o p.jsonl".split()]
    own = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=own)
    assert done.returncode == 1
    assert len(Path("p.jsonl").read_text().splitlines()) == 4
    assert "scores" in json.loads(Path("p.scores.json").read_text())


@pytest.mark.parametrize(
    ("predictions", "scores"),
    [("p.jsonl", "p.scores.json"), ("lr0.01", "lr0.01.scores.json"), ("lr0.03.json", "lr0.03.scores.json")],
)
def test_scores_lie_beside_their_predictions(predictions, scores):
    assert scores_file(Path("out") / predictions) == Path("out") / scores


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "café 😀"), ("latin-1", "caf\\u00e9 \\ud83d\\ude00")])
def test_json_is_json_in_every_encoding(encoding, text, monkeypatch):
    written = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", written)
    emit({"note": "café 😀"})
    written.seek(0)
    out = written.read()
    assert text in out
    assert json.loads(out) == {"note": "café 😀"}


def test_a_metric_of_the_tasks_own_is_named_as_any_other(tmp_path):
    own = "from dataclasses import replace\nfrom halka.data.metric import Metric\n"
    own += "from halka.data.task import load_task\n"
    own += "mine = Metric.mean('mine', 'one', lambda prediction, references: 1.0)\n"
    own += "def task():\n    return replace(load_task('support'), metrics=('rouge_l', mine), primary='mine')\n"
    (tmp_path / "own.py").write_text(own)
    task = task_of(str(tmp_path / "own.py"), None, None, None, "mine,chrf", 2, 0)
    assert [getattr(metric, "name", metric) for metric in task.metrics] == ["mine", "chrf"]


def test_evaluate_as_json(here):
    found = parsed(f"{EVALUATE} --data data.jsonl --metrics chrf --limit 2")
    assert found["scores"].keys() == {"chrf"}
    assert found["scores"]["chrf"]["n"] == 2
    alone = parsed(f"{EVALUATE} --perplexity prose.txt")
    assert alone["perplexity"]["base"] > 1
    assert "scores" not in alone
    for unused in ("--with-base", "--metrics nonsense", "--limit 3", "--split train", "-o new/predictions.jsonl"):
        told = halka(f"{EVALUATE} --perplexity prose.txt {unused}", code=2).stderr
        assert "is for examples: give --task NAME or --data FILE beside --perplexity" in told
    assert not Path("new").exists()


def test_what_is_written_takes_the_place_of_no_input_and_no_device(here):
    Path("task.yaml").write_text("train: data.jsonl\ntest: prompts.jsonl\nmetrics: exact_match\n")
    shutil.copy("data.jsonl", "prompts.jsonl")
    for name in ("task.yaml", "data.jsonl", "prompts.jsonl"):
        told = halka(f"evaluate --base base --task task.yaml -o {name}", code=2).stderr
        assert f"--out: {name} would overwrite an input" in told
    os.mkfifo("pipe")
    told = halka("evaluate --base base --task task.yaml -o pipe", code=2).stderr
    assert "--out: pipe is no regular file" in told


def test_evaluate_on_a_task(here):
    Path("task.yaml").write_text("train: data.jsonl\ntest: 0.2\nmetrics: exact_match\nmax_new_tokens: 2\n")
    base = "evaluate --base base --dtype float32 --task task.yaml"
    assert parsed(base)["examples"] == 5
    assert parsed(f"{base} --split train --limit 3")["examples"] == 3
    assert "the task task has no validation examples: choose another --split" in failure(f"{base} --split validation")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("evaluate --base base", "give either --task NAME or --data FILE to evaluate on"),
        ("evaluate --data data.jsonl", "--base"),
        ("evaluate --base base --data data.jsonl --metrics blue", "unknown metric 'blue' (did you mean 'bleu'?)"),
        ("evaluate --base base --data data.jsonl --metrics ,", "--metrics ',' names none"),
        ("evaluate --base base --data data.jsonl --limit 0", "--limit"),
        ("evaluate --base base --perplexity nope.txt", "--perplexity: there is no file nope.txt"),
        ("evaluate --base base --data data.jsonl -o prose.txt/p.jsonl", "--out: nothing can be written to prose.txt"),
        ("evaluate --base base --data data.jsonl --adapter nope", "--adapter: there is no folder nope"),
        ("evaluate --base base --data data.jsonl --adapter base", "base holds no adapter_config.json"),
        ("evaluate --base base --data data.jsonl --seed -1", "--seed"),
        ("generate --base base --temperature hot Hi", "--temperature"),
        ("generate --base base --top-p 0.5 Hi", "--top-p is for sampling: give a --temperature"),
        ("generate --base base --temperature 1 --top-p 7 Hi", "--top-p is a share above 0 and at most 1, not 7"),
        ("generate --base base --schema {} --regex a Hi", "--schema and --regex were given: give one of them"),
        ("generate --base base --schema {type Hi", "--schema: this is not JSON: "),
        ("generate --base base --schema nope.json Hi", "--schema: there is no file nope.json"),
        ("generate --base base --schema list.json Hi", "--schema: list.json holds no JSON object: a schema is one"),
        (
            'generate --base base --max-new-tokens 9 --schema {"uniqueItems":true} Hi',
            "schema at #: 'uniqueItems': this keyword cannot be",
        ),
        ("generate --base base --max-new-tokens 9 --regex a( Hi", "regex 'a(' cannot be enforced"),
        ("generate --base base", "the prompt is empty"),
        ("generate --base base Hi --file prompts.jsonl", "a PROMPT and --file were given: give one of them"),
        ("generate --base base --file prompts.txt", "prompts.txt is a text, and prompts are rows"),
        ("generate --base base --file wrong.jsonl", 'wrong.jsonl:1: no prompt: a row has one of "messages", "prompt"'),
        (
            "generate --base base --file half.jsonl",
            "half.jsonl:1: 'prompt' is not UTF-8: it has half a character (0xd800) at",
        ),
        ("generate --base base --file roles.jsonl", "roles.jsonl:1: message 1 has the role ['x']; known roles are"),
        ("generate --base base caf\udce9", "the prompt is not UTF-8: it has the byte 0xe9 at character 4"),
        ("generate --base base --system \udce9 Hi", "--system is not UTF-8"),
        ("generate --base base --temperature 1 --seed 99999999999999999999 Hi", "--seed"),
        ("chat --url http://[::1", "--url: 'http://[::1' is no URL of a server"),
        ("chat --url http://a..b", "--url: 'http://a..b' is no URL of a server"),
        ("generate --base ./nope Hi", "./nope is no folder"),
        ("adapters show nope", "FOLDER: there is no folder nope"),
        ("adapters show base", "base holds no adapter_config.json: it is not an adapter folder"),
        ("adapters show data.jsonl", "data.jsonl is a file: name the folder it is in"),
        ("trian", "No such command 'trian'"),
        ("--foo", "--foo"),
    ],
)
def test_a_wrong_command_is_one_line(here, command, told):
    Path("wrong.jsonl").write_text('{"answer": "?"}\n')
    Path("list.json").write_text('["object"]')
    Path("half.jsonl").write_text('{"prompt": "a\\ud800"}\n')
    Path("roles.jsonl").write_text('{"messages": [{"role": ["x"], "content": "Hi"}]}\n')
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
    assert halka(f"{command} --regex a\x1bb Hi").stdout == "ab\n"


def test_who_asks_without_the_system_message_of_the_training_is_reminded_of_it(here):
    card = json.loads(Path("run/adapter/halka.json").read_text())
    card["training"]["system"] = "Answer with a number."
    Path("run/adapter/halka.json").write_text(json.dumps(card))
    assert "Answer with a number." in halka("adapters show run/adapter").stdout
    command = "--base base --dtype float32 --adapter run/adapter --max-new-tokens 2"
    reminder = "was trained with the system message 'Answer with a number.', which the prompts lack: give --system"
    for without in (halka(f"generate {command} Why?"), halka(f"chat {command}", input="Why?\n")):
        assert without.stderr.count(reminder) == 1
        assert reminder not in without.stdout
    for other in (
        halka(f"generate {command} --system Yes. Why?"),
        halka(f"chat {command} --system Yes.", input="Why?\n"),
    ):
        assert reminder not in other.stderr


def test_generate_draws_the_same_for_the_same_seed(here):
    command = "generate --base base --dtype float32 --max-new-tokens 6 --file prompts.jsonl --temperature 1 --top-p 0.9"
    first, again, other = (parsed(f"{command} --seed {seed}") for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert [each["prompt"] for each in first] == ["Yes?", "No?"]
    assert "── prompts.jsonl:1: Yes?" in halka(command).stdout


def test_generate_keeps_to_a_schema_and_to_a_regular_expression(here):
    command = "generate --base base --dtype float32 --max-new-tokens 40"
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    schema |= {"additionalProperties": False}
    Path("schema.json").write_text(json.dumps(schema))
    inline = json.dumps(schema).replace(" ", "")
    for flag in ("schema.json", inline):
        (first, second) = parsed(f"{command} --file prompts.jsonl --schema {flag}")
        for told in (first, second, json.loads(halka(f"{command} --schema {flag} Hi").stdout)):
            answer = json.loads(told["answer"]) if "answer" in told else told
            assert answer in ({"a": True}, {"a": False})
    told = parsed(f"{command} --adapter run/adapter --regex [ab]{{3}} --temperature 1 Hi")
    assert re.fullmatch("[ab]{3}", told["answer"])


GENERATE = "generate --base base --dtype float32 --max-new-tokens 6"


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


def test_rows_of_a_file_have_their_own_system_text(here):
    system = {"system": "Answer as a pirate."}
    spoken = [{"role": "system", "content": system["system"]}, {"role": "user", "content": "What?"}]
    lines = [
        {"prompt": "What?"},
        {"prompt": "What?", **system},
        {"messages": spoken},
        {"messages": spoken[1:], **system},
        {"messages": None, "prompt": "What?", **system},
        {"prompt": spoken[1:], **system},
        {"question": "What?", "answer": "That.", **system},
        {"instruction": "What?", "output": "That.", **system},
        {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}], **system},
    ]
    Path("system.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain, *others = (answer for _, answer in answers(f"{GENERATE} --file system.jsonl"))
    assert len({*others}) == 1
    assert plain not in others
    flagged, *others_flagged = (answer for _, answer in answers(f"{GENERATE} --file system.jsonl --system Sing."))
    assert flagged != plain
    assert others_flagged == others, "a row's own comes first"


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
        ("--store run", "f.jsonl:1: there is no adapter 'lora', and run holds none"),
        ("--store nope", "--store: there is no folder nope"),
        ("--store adapters --adapter lorra", "--adapter: there is no adapter 'lorra' among those given: did you mean"),
        ("--store adapters --adapter lora@3", "--adapter: 'lora' has no version 3: it has 1, 2"),
        ("--store adapters --adapter lora@x", "--adapter: there is no adapter 'lora@x' among those given: did you"),
        (
            "--adapter lora --adapter lora=prefix",
            "--adapter: two are named 'lora': give them different names, as in NAME=",
        ),
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
    Path("long.json").write_text(json.dumps([{"prompt": "What?", "completion": "Longer than there is room for"}]))
    messages = halka(f"{EVALUATE} --data long.json --metrics chrf --adapter lora --with-base").stderr
    assert messages.count("accepted answers are longer than 3 tokens") == 1, "once for all who answer"
    of_one = halka(f"{EVALUATE} --data f.json --metrics chrf --adapter lora --adapter prefix --with-base").stdout
    assert [line.partition("  ")[0] for line in of_one.splitlines()[1:3]] == ["all", "the bare base"]
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


def test_a_run_s_folder_stands_for_its_adapter_which_is_called_after_it(here):
    lines = Path("asked.jsonl")
    lines.write_text('{"prompt": "What?"}\n')
    for place in ("run", "run/adapter"):
        (answer,) = parsed(f"generate --base base --max-new-tokens 2 --adapter {place} --file asked.jsonl")
        assert answer["adapter"] == "run"
    assert parsed("adapters show run")["files"] == parsed("adapters show run/adapter")["files"]
    assert "run, version 1" in halka("adapters add run --store kept").stdout


def test_a_pool_without_a_store_is_refused(here):
    assert "--pool is the memory that a store's adapters may take" in failure('generate --base base --pool 5 "hello"')
    told = failure('generate --base base --store kept --pool much "hello"')
    assert "'--pool': 'much' is no size above 0: write it as 512MB, 1.5GB, or as a number of MB: see" in told
