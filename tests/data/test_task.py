"""Tasks come from YAML, Python or by name; splits are reproducible and never share a prompt that was split off."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from halka.data.examples import Example, Message
from halka.data.labels import classes_in, label_index
from halka.data.task import Task, files_of, limit, load_task, of_kind, overlaps


def example(prompt: str, answer: str = "yes", where: str = "") -> Example:
    return Example((Message("user", prompt), Message("assistant", answer)), where=where)


def examples(*prompts: object) -> tuple[Example, ...]:
    return tuple(example(str(prompt)) for prompt in prompts)


def make(train=(), validation=(), test=()) -> Task:
    return Task("t", tuple(train), tuple(validation), tuple(test), ("exact_match",), "exact_match")


@pytest.fixture
def write(tmp_path):
    """A folder with train.jsonl (40 rows, each prompt twice), test.csv, and the task file; gives the latter's path."""
    rows = [{"prompt": f"p{i % 20}", "completion": f"c{i}"} for i in range(40)]
    (tmp_path / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "", "completion": "c"}])
    )
    (tmp_path / "test.csv").write_text("prompt,completion\nt1,c1\nt2,c2\n")

    def write(text, name="task.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def prompts(split) -> set[str]:
    return {each.prompt[0].content for each in split}


def test_a_task_file_with_every_key(write):
    task = load_task(
        write(
            "name: mine\ntrain: train.jsonl\nvalidation: [test.csv]\ntest: test.csv\nshape: prompt\nseed: 3\n"
            "metrics: [exact_match, rouge]\nprimary: rouge\nmax_new_tokens: 9\nlicence: MIT\nsource: here\n"
        )
    )
    assert (task.name, task.metrics, task.primary) == ("mine", ("exact_match", "rouge"), "rouge")
    assert (task.max_new_tokens, task.licence, task.source) == (9, "MIT", "here")
    assert (len(task.train), len(task.validation), len(task.test)) == (40, 2, 2)
    assert [str(problem) for problem in task.problems] == ["train.jsonl:41: 'prompt' is empty"]


def test_a_task_files_paths_may_begin_at_the_home_folder(write, monkeypatch):
    path = write("train: ~/train.jsonl\nmetrics: exact_match\n")
    monkeypatch.setenv("HOME", str(path.parent))
    (path.parent / "deep").mkdir()
    path = path.rename(path.parent / "deep" / path.name)
    assert len(load_task(path).train) == 40
    assert files_of(path) == [path, path.parents[1] / "train.jsonl"]
    assert files_of(Path("support")) == []


def test_what_a_task_file_leaves_out(write):
    task = Task.from_yaml(write("train: train.jsonl\nmetrics: exact_match\nlicence:\n", "mine.yml"))
    assert (task.name, task.metrics, task.primary) == ("mine", ("exact_match",), "exact_match")
    assert (task.validation, task.test, task.max_new_tokens, task.licence) == ((), (), None, "")


def test_fractions_aresplit_off_reproducibly_with_equal_prompts_together(write):
    text = "train: train.jsonl\nvalidation: 0.1\ntest: 0.2\nmetrics: m\n"
    task = Task.from_yaml(write(text))
    assert (len(task.train), len(task.validation), len(task.test)) == (28, 4, 8)
    assert overlaps(task) == {}
    assert prompts(task.train) | prompts(task.validation) | prompts(task.test) == {f"p{i}" for i in range(20)}
    assert Task.from_yaml(write(text)) == task
    assert prompts(Task.from_yaml(write(f"{text}seed: 1\n")).test) != prompts(task.test)
    lines = [int(each.where.rpartition(":")[2]) for each in task.train]
    assert lines == sorted(lines)


def test_files_for_bases_of_different_kinds_need_a_kind(write):
    text = "train: [labels.jsonl, train.jsonl]\nmetrics: m\n"
    (write(text).parent / "labels.jsonl").write_text('{"text": "a", "label": "b"}\n')
    with pytest.raises(ValueError, match=r"train\.jsonl:1 is read as .*, for bases of different kinds: name one"):
        Task.from_yaml(write(text))
    assert Task.from_yaml(write(f"{text}kind: causal-lm\n")).kind == "causal-lm"


def test_fields_that_nobody_reads_are_kept(write):
    assert Task.from_yaml(write("train: train.jsonl\nmetrics: m\n")).unread == ()
    path = write("train: more.jsonl\nmetrics: m\n")
    (path.parent / "more.jsonl").write_text('{"prompt": "a", "completion": "b", "context": "c"}\n')
    assert Task.from_yaml(path).unread == ("context",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "train: train.jsonl\nmetrics: m\nepochs: 3\n",
            r"epochs: unknown key\. Known keys: name, kind, labels, train",
        ),
        ("metrics: m\n", r"train: missing; give a file or a list of files"),
        ("train: train.jsonl\n", r"metrics: missing; give a name or a list of names"),
        ("train: train.jsonl\nmetrics: []\n", r"metrics: \[\] is not a name or a list of names"),
        ("train: 0.5\nmetrics: m\n", r"train: 0\.5 is not a file or a list of files"),
        (
            "train: train.jsonl\nmetrics: m\nvalidation: 1.5\n",
            r"validation: 1\.5 is not a file, .* fraction of train between",
        ),
        ("train: train.jsonl\nmetrics: m\ntest: 10\n", r"test: 10 is not a file"),
        ("train: train.jsonl\nmetrics: m\nmax_new_tokens: 0\n", r"max_new_tokens: 0 is not a whole number above 0"),
        ("train: train.jsonl\nmetrics: m\nseed: true\n", r"seed: True is not a whole number"),
        ("train: train.jsonl\nmetrics: m\nprimary: f1\n", r"primary: 'f1' is not among the metrics m"),
        ("train: train.jsonl\nmetrics: m\nvalidation: 0.99\ntest: 0.99\n", r"leave nothing of 40 train examples"),
        ("train: train.jsonl\nmetrics: m\nshape: qa\n", r"shape 'qa' is unknown"),
        ("- a\n", r"not a task: it needs keys and values"),
        ("a: [\n", r"not valid YAML"),
    ],
)
def test_a_wrong_task_file_is_an_error_that_names_the_key(write, text, reason):
    with pytest.raises(ValueError, match=reason):
        Task.from_yaml(write(text))


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        Task.from_yaml(write("train: none.jsonl\nmetrics: m\n"))
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_task(tmp_path / "none.yaml")


def test_a_python_file_defines_a_task(write):
    source = (
        "from halka.data.task import Task\nNAME = 'made'\ndef task():\n    return Task(NAME, (), (), (), ('m',), 'm')\n"
    )
    assert load_task(str(write(source, "made.py"))).name == "made"
    with pytest.raises(ValueError, match=r"empty\.py: defines no function task\(\)"):
        load_task(write("", "empty.py"))
    with pytest.raises(ValueError, match=r"number\.py: task\(\) returned a int"):
        load_task(write("def task():\n    return 3\n", "number.py"))


def test_the_shipped_task_and_unknown_names():
    task = load_task("support")
    assert task.train
    assert task.test
    assert overlaps(task) == {}
    with pytest.raises(ValueError, match=r"task 'supper' is unknown\. Name support, a \.yaml file or a \.py file"):
        load_task("supper")


def test_limits_are_reproducible_nested_and_in_order():
    task = make(examples(*range(50)), examples(*range(50, 60)), examples(*range(60, 70)))
    small, large = limit(task, train=5, test=0, seed=1), limit(task, train=20, seed=1)
    assert small == limit(task, train=5, test=0, seed=1)
    assert set(small.train) < set(large.train) < set(task.train)
    assert [each for each in task.train if each in large.train] == list(large.train)
    assert (small.validation, small.test) == (task.validation, ())
    assert limit(task, train=5, seed=2).train != small.train
    assert limit(task, train=500) == task
    with pytest.raises(ValueError, match="cannot take -1 validation examples"):
        limit(task, validation=-1)


def test_letters_are_the_same_however_their_accents_are_composed():
    composed, combining = "caf\u00e9", "cafe\u0301"
    task = make([example(composed)], [example(combining)])
    assert list(overlaps(task)) == [("train", "validation")]
    labels = classes_in([example("a", combining), example("b", composed)])
    assert (labels, label_index(composed, labels)) == ((combining,), 0)


def test_a_task_that_lists_labels_keeps_them_whichever_kind_it_is_read_for(write):
    path = write("train: train.jsonl\nmetrics: accuracy\nlabels: [c2, unseen, c1]\n")
    assert of_kind(load_task(path), "sequence-classification").labels == ("c2", "unseen", "c1")
    listed = replace(make([example("a", "b")]), kind="sequence-classification", labels=("c",))
    assert of_kind(listed, "token-classification").labels == ("b",)
    assert of_kind(listed, "causal-lm").labels == ()


def test_labels_of_regression_make_no_classes():
    assert classes_in([example("a", "1.0"), example("b", "0"), example("c", "nan")]) == ("0", "1.0", "nan")
    with pytest.raises(ValueError, match=r"the label '3\.8' is a number with a fraction, and regression is not there"):
        classes_in([example("a", "1.0"), example("b", "3.8")])


def test_overlaps_look_past_blanks_and_capitals():
    task = make(
        [example("What  is it?", "A", "train:1"), example("And now?", where="train:2")],
        [example("what is it?\n", "B", "validation:1")],
        [example("AND NOW?", "Yes", "test:1"), example("else")],
    )
    found = overlaps(task)
    assert list(found) == [("train", "validation"), ("train", "test")]
    [first] = found["train", "validation"]
    assert (first.first, first.second, first.same_answer) == ("train:1", "validation:1", False)
    [second] = found["train", "test"]
    assert (second.first, second.second, second.same_answer) == ("train:2", "test:1", True)
