"""Files in the shapes people have become examples; what cannot be read is named with its line, never dropped unsaid."""

import gzip
import json
import math
import re
from collections import Counter
from dataclasses import replace

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import halka
from halka.data.examples import Example, Message, as_examples, read_examples
from halka.data.prompts import as_prompts
from halka.data.readers import Problem, _distinct, row_of
from halka.data.shapes import SHAPES, prompt_of
from halka.util.errors import DataError

PAIR = (Message("user", "2 + 2?"), Message("assistant", "4"))
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
ANSWER = {"role": "assistant", "content": "4"}
SHAREGPT = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 2?"}]}, ANSWER]

ROWS = {
    "messages": {"messages": [TURNS[1], ANSWER]},
    "prompt": {"prompt": "2 + 2?", "completion": "4"},
    "question": {"question": "2 + 2?", "answer": "4"},
    "alpaca": {"instruction": "2 + 2?", "output": "4"},
    "sharegpt": {"conversations": SHAREGPT},
    "labelled": {"text": "2 + 2?", "label": "4"},
    "tagged": {"words": ["2", "+", "2?"], "tags": ["O", "O", "B-X"]},
    "text": {"text": "2 + 2?"},
}
READ = {
    **dict.fromkeys(ROWS, PAIR),
    "tagged": (PAIR[0], Message("assistant", "O O B-X")),
    "text": (Message("text", "2 + 2?"),),
}


@pytest.fixture
def write(tmp_path):
    def write(content, name="data.jsonl"):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def reasons(rows):
    return [str(problem) for problem in rows.problems]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_recognised_and_gives_the_same_conversation(write, shape):
    rows = read_examples(write([ROWS[shape]]))
    assert (rows.shape, rows.problems) == (shape, [])
    assert [example.messages for example in rows.examples] == [READ[shape]]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rows_prompt_needs_no_answer(shape):
    asked = {key: value for key, value in ROWS[shape].items() if key == SHAPES[shape].keys[0]}
    assert prompt_of(row_of("x", asked)) == prompt_of(row_of("x", ROWS[shape])) == [PAIR[0]]


@pytest.mark.parametrize("shape", ["question", "alpaca"])
def test_a_rows_prompt_is_the_one_that_is_trained_on(write, shape):
    row = {**ROWS[shape], "prompt": "All of it: 2 + 2? 4"}
    assert prompt_of(row_of("x", row)) == list(read_examples(write([row])).examples[0].prompt) == [PAIR[0]]
    with_text = {"prompt": "2 + 2?", "text": "All of it: 2 + 2? 4"}
    assert prompt_of(row_of("x", with_text)) == [PAIR[0]]


def test_a_row_without_a_prompt_is_named():
    with pytest.raises(DataError, match='a row has one of "messages", "prompt", "question", "instruction"'):
        prompt_of(row_of("x", {"answer": "4"}))
    with pytest.raises(DataError, match="no message to answer"):
        prompt_of(row_of("x", {"messages": [{"role": "system", "content": ""}]}))


UNLEARNED = (PAIR[0], replace(PAIR[1], learned=False))


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"messages": [*TURNS, ANSWER]}, (Message("system", "Be brief."), *PAIR)),
        ({"messages": [*TURNS, ANSWER, TURNS[1], ANSWER]}, (Message("system", "Be brief."), *PAIR, *PAIR)),
        ({"messages": PARTS}, PAIR),
        (
            {"messages": [{"role": "developer", "content": "Be brief."}, *PARTS]},
            (Message("system", "Be brief."), *PAIR),
        ),
        ({"messages": [{**message, "name": None} for message in (TURNS[1], ANSWER)]}, PAIR),
        ({"conversations": SHAREGPT, "system": "Be brief."}, (Message("system", "Be brief."), *PAIR)),
        (
            {"conversations": [{"from": "system", "value": "Be brief."}, *SHAREGPT]},
            (Message("system", "Be brief."), *PAIR),
        ),
        ({"conversations": [TURNS[1], ANSWER]}, PAIR),
        ({"conversations": [{"from": "system", "value": ""}, *SHAREGPT]}, PAIR),
        ({"messages": [{"role": "system", "content": None}, TURNS[1], ANSWER]}, PAIR),
        ({"messages": [TURNS[1], {**ANSWER, "weight": 0}, TURNS[1], {**ANSWER, "weight": 1}]}, (*UNLEARNED, *PAIR)),
        ({"messages": [TURNS[1], {**ANSWER, "train": False}, TURNS[1], ANSWER]}, (*UNLEARNED, *PAIR)),
        ({"messages": [TURNS[1], {**ANSWER, "loss": False}, TURNS[1], ANSWER]}, (*UNLEARNED, *PAIR)),
        ({"prompt": [TURNS[1], ANSWER, TURNS[1]], "completion": [ANSWER]}, (*UNLEARNED, *PAIR)),
        ({"prompt": [TURNS[1]], "completion": [ANSWER]}, PAIR),
        ({"instruction": "Add.", "input": "2 + 2", "output": "4"}, (Message("user", "Add.\n\n2 + 2"), PAIR[1])),
        ({"instruction": "2 + 2?", "input": "", "output": 4}, PAIR),
        ({"Prompt ": "2 + 2?", "COMPLETION": "4"}, PAIR),
    ],
)
def test_what_people_write_within_a_shape(write, row, messages):
    assert [example.messages for example in read_examples(write([row])).examples] == [messages]


def test_an_example_knows_its_prompt_and_its_answers():
    example = Example((*PAIR, Message("user", "3 + 3?"), Message("assistant", "6")))
    assert example.prompt == (*PAIR, Message("user", "3 + 3?"))
    assert example.answers == ("6",)
    assert Example(PAIR, ("4", "four")).answers == ("4", "four")
    asked = Example(PAIR[:1])
    assert (asked.prompt, asked.answers) == (PAIR[:1], ())
    assert Example((*PAIR, *PAIR[:1])).prompt == (*PAIR, *PAIR[:1])
    assert Example(()).prompt == ()


def test_references_are_a_list_a_text_or_a_list_in_a_cell(write):
    rows = read_examples(
        write([{**ROWS["prompt"], "references": ["4", 4.0, "four"]}, {**ROWS["prompt"], "references": "4"}])
    )
    assert [example.references for example in rows.examples] == [("4", "4.0", "four"), ("4",)]
    table = 'prompt,completion,references\n2 + 2?,4,"[""4"", ""four""]"\n3 + 3?,6,\n'
    rows = read_examples(write(table, "data.csv"))
    assert [example.references for example in rows.examples] == [("4", "four"), ()]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "", "completion": "4"}, "'prompt' is empty"),
        ({"prompt": " \n", "completion": "4"}, "'prompt' is empty"),
        ({"prompt": "2 + 2?", "completion": None}, "no 'completion'"),
        ({"prompt": "2 + 2?"}, "no 'completion', which a row of shape 'prompt' has"),
        ({}, "no 'prompt' and no 'completion'"),
        ({"prompt": {"a": 1}, "completion": "4"}, "'prompt' is not text but a dict"),
        ({"prompt": "a", "completion": [{"type": "image_url"}]}, "'completion' has a part of type 'image_url'"),
        ({"prompt": "a", "completion": "\ud800"}, r"'completion' is not UTF-8: it has half a character \(0xd800\)"),
        ({"prompt": "a", "completion": "b", "references": [""]}, "a reference is empty"),
        ({"prompt": "a", "completion": "b", "label": False}, "'label' is False, as of an answer that is rejected: re"),
        ({"prompt": "a", "completion": "b", "label": 0}, "'label' is 0, as of an answer that is rejected: rename"),
        ('{"prompt": "a", "completion": NaN}\n', "no 'completion'"),
        ('{"prompt": "a", "completion"\n', "not valid JSON: Expecting ':' delimiter at column 29"),
        ("[1, 2]\n", r"not an object but \"\['1', '2'\]\""),
        ("[" * 100_000 + "\n", "nested too deeply"),
    ],
)
def test_a_bad_row_is_a_problem_with_its_line_and_the_others_are_read(write, row, reason):
    rows = read_examples(write([ROWS["prompt"], "\n", row, ROWS["prompt"]]))
    assert [example.where for example in rows.examples] == ["data.jsonl:1", "data.jsonl:4"]
    assert [problem.where for problem in rows.problems] == ["data.jsonl:3"]
    assert [row.where for row in rows.rows] == ["data.jsonl:1", "data.jsonl:4"]
    assert re.search(reason, rows.problems[0].reason)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "'messages' is empty"),
        ("hello", "'messages' is not a list of messages but a str"),
        (TURNS, "no answer by the assistant"),
        ([ANSWER], "no message by the user"),
        ([*TURNS, ANSWER, TURNS[1]], "the last message is the user's, not the assistant's answer"),
        ([TURNS[1], {"role": "assistant", "content": " "}], "message 2 is empty"),
        ([TURNS[1], {"role": "assistant", "content": None}], "message 2 is missing"),
        ([TURNS[1], {"role": "critic", "content": "4"}, ANSWER], "message 2 has the role 'critic'; known roles are"),
        ([TURNS[1], {"content": "4"}], "message 2 has the role None"),
        ([TURNS[1], 4], "message 2 is not an object but a Number"),
        ([TURNS[1], ANSWER, TURNS[1], {**ANSWER, "weight": 0}], "the last answer is not to be learned"),
        (
            [TURNS[1], {**ANSWER, "weight": 0.5}],
            "message 2 has the weight '0.5': write 1 or true where it is to be lea",
        ),
        ([TURNS[1], {**ANSWER, "train": "no"}], "message 2 has the train 'no'"),
        ([TURNS[1], {**ANSWER, "reasoning_content": "Easy."}], "message 2 has 'reasoning_content', which is not read"),
    ],
)
def test_a_bad_conversation_is_a_problem(write, messages, reason):
    rows = read_examples(write([ROWS["messages"], {"messages": messages}]))
    assert len(rows.examples) == 1
    assert rows.problems[0].where == "data.jsonl:2"
    assert reason in rows.problems[0].reason


@pytest.mark.parametrize("key", ["images", "image"])
def test_a_row_with_more_than_text_is_a_problem(write, key):
    rows = read_examples(write([{**ROWS["messages"], key: []}, {**ROWS["messages"], key: [{"a": 1}]}]))
    assert [(problem.where, problem.reason) for problem in rows.problems] == [
        ("data.jsonl:2", f"the row has {key!r}, and only text is read")
    ]


def test_a_row_with_a_thought_of_its_own_is_a_problem(write):
    rows = read_examples(write([{**ROWS["question"], "reasoning": ""}, {**ROWS["question"], "reasoning": "Easy."}]))
    assert [(problem.where, problem.reason) for problem in rows.problems] == [
        (
            "data.jsonl:2",
            "the row has 'reasoning', which is not read: write it into the answer, as the base does, or remove it",
        )
    ]


def test_several_texts_in_one_place_are_not_glued(write):
    rows = read_examples(write([ROWS["question"], {"question": "When?", "answer": ["in 1972", "14 December 1972"]}]))
    assert reasons(rows) == [
        "data.jsonl:2: 'answer' is a list of 2 texts: give one, and all that are right as 'references'"
    ]
    parts = [{"type": "text", "text": "in "}, {"type": "text", "text": "1972"}]
    assert as_examples([{"question": ["When?"], "answer": parts}])[0].messages[1].content == "in 1972"


def test_a_file_whose_name_is_not_utf_8_has_rows_that_can_be_written(tmp_path):
    path = tmp_path / "caf\udce9.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    (example,) = read_examples(path)
    assert example.where.encode() == b"caf\\udce9.jsonl:1"


def test_missing_values_of_a_table_are_none():
    row = {"instruction": "2 + 2?", "input": math.nan, "output": "4", "system": math.nan, "tools": math.nan}
    assert as_examples([row]) == [Example(PAIR, where="examples[0]")]
    pandas = pytest.importorskip("pandas")
    assert as_examples([{**row, "input": pandas.NA, "system": pandas.NaT}]) == [Example(PAIR, where="examples[0]")]


def test_a_field_that_is_there_twice_is_a_problem(write):
    twice = ['{"prompt": "a", "prompt": "b", "completion": "c"}\n', {"Prompt": "a", "prompt ": "b", "completion": "c"}]
    nobodys = '{"prompt": "a", "completion": "b", "id": 1, "ID": 2, "more": {"x": 1, "x": 2}}\n'
    rows = read_examples(write([ROWS["prompt"], *twice, nobodys]))
    reason = "two fields are called 'prompt': rename or remove one"
    assert (len(rows), reasons(rows)) == (2, [f"data.jsonl:2: {reason}", f"data.jsonl:3: {reason}"])
    with pytest.raises(DataError, match=rf"examples\[0\]: {reason}"):
        as_examples([twice[1]])
    with pytest.raises(DataError, match=rf"prompts\[0\]: {reason}"):
        as_prompts([twice[1]])


def test_a_field_that_is_there_twice_within_a_field_that_is_read_is_a_problem(write):
    asked, answered = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b", "content": "c"}'
    messages, arguments = f"[{asked}, {answered}]", '{"city": "Rome", "city": "Paris"}'
    as_text = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": arguments}]}
    called = {"messages": [json.loads(asked), as_text]}
    rows = read_examples(write([f'{{"messages": {messages}}}\n', {"messages": messages}, called, ROWS["messages"]]))
    within, mend = "two fields in 'messages' are called 'content'", "rename or remove one"
    of_call = f"message 2: 'tool_calls' 1: the arguments: two fields are called 'city': {mend}"
    expected = [f"data.jsonl:{line}: {reason}" for line, reason in enumerate([*[f"{within}: {mend}"] * 2, of_call], 1)]
    assert (len(rows), reasons(rows)) == (1, expected)


def test_json_that_is_text_may_have_a_field_twice(write):
    """As what a model has to write, or to mend."""
    twice = '[{"name": "Ann", "name": "Bob"}]'
    rows = read_examples(write([{"prompt": twice, "completion": twice}]))
    assert [(example.messages[0].content, example.answer) for example in rows] == [(twice, twice)]


def test_an_array_in_a_field_that_nobody_reads_is_no_matter():
    with pytest.warns(UserWarning, match="^not read: embedding$"):
        assert len(as_examples([{**ROWS["question"], "embedding": numpy.zeros(3)}])) == 1


def test_an_array_where_a_list_belongs_is_refused_by_its_row():
    """As pandas has them in what it read of Parquet."""
    several = numpy.array(["x", "y"])
    answered = {"role": "assistant", "content": "Yes.", "tool_calls": several}
    for row in (
        {**ROWS["question"], "references": several},
        {"messages": [{"role": "user", "content": "?"}, answered]},
    ):
        with pytest.raises(DataError, match=r"^examples\[0\]: "):
            as_examples([row])


def test_rows_that_are_reached_by_their_number_are_read():
    class Subset:
        def __getitem__(self, index):
            return [ROWS["question"]][index]

    assert as_examples(Subset()) == [Example(PAIR, where="examples[0]")]


def test_a_classifiers_rows_may_have_thoughts_that_are_not_read(write):
    assert not read_examples(write([{"text": "Fine!", "label": "good", "reasoning": "It says so."}])).problems


def test_json_that_is_no_conversation_is_a_text(write):
    (example,) = read_examples(write([{"prompt": '[{"a": 1}]', "completion": '[{"b": 2}]'}])).examples
    assert [message.content for message in example.messages] == ['[{"a": 1}]', '[{"b": 2}]']


def test_fields_that_nobody_reads_are_named(write):
    rows = [{**ROWS["question"], "passage": "Sums.", "empty": ""}]
    for source in (rows, read_examples(write(rows))):
        with pytest.warns(UserWarning, match="^not read: passage$"):
            assert len(as_examples(source)) == 1


def test_keys_of_messages_that_nobody_reads_are_named(write):
    named = [{**TURNS[1], "name": "Ada", "weight": 1}, {**ANSWER, "id": None, "tool_calls": []}]
    for rows in ([{"messages": named}], [{"prompt": named[:1], "completion": named[1:]}]):
        (key, *_) = rows[0]
        assert read_examples(write(rows)).unread == [f"{key}.name"]
    assert read_examples(write([{"messages": PARTS}])).unread == []


def test_a_tables_first_line_names_its_columns(write):
    with pytest.raises(ValueError, match=r"'2 \+ 2\?', '4'\. .* columns, which a table's first line names, to one"):
        read_examples(write("2 + 2?,4\n3 + 3?,6\n", "data.csv"))
    assert read_examples(write(",prompt,completion\n0,2 + 2?,4\n", "data.csv")).unread == []


def test_what_is_no_list_of_examples_is_named():
    with pytest.raises(ValueError, match=r"examples are 0\.1: give rows; `halka\.data\.splits\.hold_out"):
        as_examples(0.1)


def test_quotes_of_two_rows_of_a_tsv_do_not_join_them_unseen(write):
    text = 'text\tlabel\ngood film\tpos\n"Dull\tneg\nfine\tpos\nthe end"\tpos\nlast\tneg\n'
    rows = read_examples(write(text, "data.tsv"))
    assert [example.answer for example in rows.examples] == ["pos", "neg"]
    (reason,) = reasons(rows)
    assert reason.startswith("data.tsv:3: each of its lines would be a row")
    assert reason.endswith("(read as one row of 3 lines)")
    said = read_examples(write('prompt\tcompletion\n"He said ""hi"":\tBob\nAge?"\tFive.\n', "said.tsv"))
    assert said.examples[0].prompt[0].content == 'He said "hi":\tBob\nAge?'
    code = read_examples(write('prompt\tcompletion\n"def f():\n\treturn ""1"""\tA function.\n', "code.tsv"))
    assert (code.examples[0].prompt[0].content, code.problems) == ('def f():\n\treturn "1"', [])


def test_a_comma_in_a_tsvs_header_separates_nothing(write):
    rows = read_examples(write("question, in short, please\tquestion\tanswer\nx\t2 + 2?\t4\n", "data.tsv"))
    assert [example.messages for example in rows.examples] == [PAIR]
    assert len(read_examples(write("question,answer\n2 + 2?,4\n", "data.tsv")).examples) == 1


def test_cells_that_are_messages_are_read_as_these(write):
    cells = ['[{""role"": ""user"", ""content"": ""2 + 2?""}]', '[{""role"": ""assistant"", ""content"": ""4""}]']
    rows = read_examples(write(f'prompt,completion\n"{cells[0]}","{cells[1]}"\n"[2]","[4]"\n', "data.csv"))
    assert [example.messages for example in rows.examples] == [
        PAIR,
        (Message("user", "[2]"), Message("assistant", "[4]")),
    ]


def test_messages_are_written_as_they_were_read(write):
    rows = [{"messages": [message.plain for message in (*UNLEARNED, *PAIR)]}]
    assert read_examples(write(rows)).examples[0].messages == (*UNLEARNED, *PAIR)
    assert repr(PAIR[1]) == "Message(role='assistant', content='4')", "digests of finished studies are made of it"
    assert eval(repr(UNLEARNED)) == UNLEARNED


def test_numbers_stay_as_the_file_writes_them(write):
    huge = "9" * 10_000
    rows = read_examples(
        write([f'{{"prompt": 1.50, "completion": {huge}}}\n', '{"prompt": true, "completion": 1e400}\n'])
    )
    contents = [[message.content for message in example.messages] for example in rows.examples]
    assert contents == [["1.50", huge], ["true", "1e400"]]


def test_the_shape_most_rows_have_is_chosen_and_can_be_overridden(write):
    path = write([ROWS["prompt"], ROWS["alpaca"], ROWS["prompt"]])
    rows = read_examples(path)
    assert (rows.shape, len(rows.examples), reasons(rows)) == (
        "prompt",
        2,
        ["data.jsonl:2: no 'prompt' and no 'completion', which a row of shape 'prompt' has"],
    )
    rows = read_examples(path, shape="alpaca")
    assert (rows.shape, len(rows.examples), len(rows.problems)) == ("alpaca", 1, 2)


def test_two_shapes_that_fit_equally_well_must_be_told_apart(write):
    path = write([{**ROWS["question"], **ROWS["prompt"]}])
    with pytest.raises(ValueError, match=r"data\.jsonl: 1 rows fit 'prompt' and as many fit 'question'\. Name one"):
        read_examples(path)
    assert read_examples(path, shape="question").shape == "question"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            "",
            r"data\.jsonl: the file has no rows\. Known shapes: messages \(messages\), prompt \(prompt \+ completion\)",
        ),
        ("\n \n", "the file has no rows"),
        ('{"text": "a", "class": 1}\n', r"no row has a known shape; the first one has 'class', 'text'\. Known shapes"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', r"rename it to 'completion'.*DPOTrainer"),
        ('{"instruction": "a", "chosen": "b", "rejected": "c"}\n', r"rename it to 'output'"),
        ('{"question": "a", "chosen": "b", "rejected": "c"}\n', r"rename it to 'answer'"),
        (
            [{"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}],
            r"'conversations' do not end with the answer: to learn 'chosen', append it\. .*DPOTrainer",
        ),
        ("hello\n", r"no row has a known shape; data\.jsonl:1: not valid JSON.* Check that the file is what"),
        ('{"version": 1, "data": [{"prompt": "a", "completion": "b"}]}', r"If the rows are those in 'data', save that"),
        (
            '{"prompt": "", "completion": "4"}\n',
            r"none of 1 rows is usable as 'prompt'\. data\.jsonl:1: 'prompt' is empty",
        ),
    ],
)
def test_a_file_without_a_usable_row_is_an_error_that_says_why(write, content, reason):
    with pytest.raises(ValueError, match=reason):
        read_examples(write(content))


def test_an_unknown_shape_kind_of_file_or_file_is_an_error(write, tmp_path):
    with pytest.raises(ValueError, match=r"shape 'qa' is unknown\. Known shapes: messages"):
        read_examples(write([ROWS["prompt"]]), shape="qa")
    with pytest.raises(ValueError, match=r"data\.pdf: unknown kind of data file: use one of \.jsonl"):
        read_examples(write("a", "data.pdf"))
    with pytest.raises(FileNotFoundError):
        read_examples(tmp_path / "none.jsonl")


def test_a_text_file_is_one_raw_text(write):
    rows = read_examples(write("One.\n\nTwo.\n", "notes.txt"))
    assert (rows.shape, rows.examples) == ("text", [Example((Message("text", "One.\n\nTwo.\n"),), where="notes.txt")])
    assert rows.examples[0].plain == {"text": "One.\n\nTwo.\n"}
    with pytest.raises(DataError, match="'text' is empty"):
        read_examples(write("\n", "empty.md"))


def test_rows_with_more_than_a_text_are_raw_only_by_name(write):
    path = write([{"text": "One.", "url": "x"}, {"text": "Two.", "system": "Be brief."}])
    with pytest.raises(DataError, match="To train on 'text' as raw text, name its shape"):
        read_examples(path)
    rows = read_examples(path, "text")
    assert (len(rows), rows.unread, reasons(rows)) == (
        1,
        ["url"],
        ["data.jsonl:2: a raw text has no system message: remove 'system'"],
    )
    assert read_examples(write([ROWS["text"], ROWS["labelled"], ROWS["text"]])).shape == "labelled"


def test_byte_order_marks_and_windows_line_ends_do_no_harm(write):
    line = json.dumps(ROWS["prompt"])
    rows = read_examples(write(f"\ufeff{line}\r\n\r\n{line}\r\n"))
    assert [example.where for example in rows.examples] == ["data.jsonl:1", "data.jsonl:3"]
    rows = read_examples(write("\ufeffprompt;completion\r\n2 + 2?;4\r\n", "data.csv"))
    assert [example.messages for example in rows.examples] == [PAIR]


def test_line_separators_within_a_text_do_not_count_as_lines(write):
    rows = read_examples(write('{"prompt": "a\u2028\x85b", "completion": "c"}\n{\n'))
    assert rows.examples[0].messages[0].content == "a\u2028\x85b"
    assert rows.problems[0].where == "data.jsonl:2"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("data.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "caf\xe9", "completion": "b"}\n', 2),
        ("data.json", b'[{"prompt": "a", "completion": "b"},\n\n{"prompt": "caf\xe9", "completion": "b"}]\n', 3),
        ("data.csv", b"prompt,completion\na,b\ncaf\xe9,b\n", 3),
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_their_line(write, name, content, line):
    rows = read_examples(write(content, name))
    assert len(rows.examples) == 1
    assert reasons(rows) == [f"{name}:{line}: 'prompt' is not UTF-8: it has the byte 0xe9 at character 4"]


def test_utf16_is_refused_with_the_way_out(write):
    with pytest.raises(ValueError, match=r"is in UTF-16\. Save it as UTF-8"):
        read_examples(write(json.dumps(ROWS["prompt"]).encode("utf-16")))


def test_gzipped_files_are_read_and_broken_ones_refused(write):
    packed = gzip.compress(json.dumps(ROWS["prompt"]).encode())
    assert len(read_examples(write(packed, "data.jsonl.gz")).examples) == 1
    with pytest.raises(ValueError, match=r"data\.jsonl\.gz: not a whole gzip file"):
        read_examples(write(packed[:-9], "data.jsonl.gz"))


def test_a_json_array_has_true_line_numbers(write):
    rows = read_examples(write(json.dumps([ROWS["prompt"], 3, ROWS["prompt"]], indent=2), "data.json"))
    assert [example.where for example in rows.examples] == ["data.json:2", "data.json:7"]
    assert reasons(rows) == ["data.json:6: not an object but '3'"]


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (', {"prompt" 4}]', r"data\.json:2: not valid JSON: .*\. Mend the file, or write JSONL"),
        (" 4]", r"data\.json:1: no comma or closing bracket after this row"),
        ("", r"data\.json:1: no comma or closing bracket after this row"),
        (",", r"data\.json:1: not valid JSON"),
        ("] x", r"data\.json:1: text follows the end of the array"),
    ],
)
def test_a_broken_array_is_refused_with_the_place(write, after, reason):
    row = json.dumps(ROWS["prompt"])
    with pytest.raises(DataError, match=reason):
        read_examples(write(f"[{row}{after.replace(' {', chr(10) + '{')}", "data.json"))


def test_a_broken_object_is_refused_with_the_place(write):
    with pytest.raises(DataError, match=r"data\.json: not valid JSON: Expecting ':' delimiter at line 3 column 14"):
        read_examples(write('{\n"prompt": "2 + 2?",\n"completion" 4}\n', "data.json"))
    rows = read_examples(write([ROWS["prompt"], '{"prompt" 4}\n', ROWS["prompt"]], "data.json"))
    assert (len(rows), [problem.where for problem in rows.problems]) == (2, ["data.json:2"])
    rows = read_examples(write(['{"prompt" 4}\n', ROWS["prompt"], ROWS["prompt"]], "data.json"))
    assert (len(rows), [problem.where for problem in rows.problems]) == (2, ["data.json:1"])


def test_a_json_file_may_be_one_object_or_lines(write):
    assert len(read_examples(write(json.dumps(ROWS["messages"], indent=1), "data.json")).examples) == 1
    assert len(read_examples(write([ROWS["prompt"]] * 3, "data.json")).examples) == 3
    with pytest.raises(ValueError, match="no rows"):
        read_examples(write("[ ]", "data.json"))


def test_a_word_of_conll_keeps_what_follows_a_space_that_does_not_break(write):
    rows = read_examples(write("The\tX\tO\r\nend  O\t\n\n10\u00a0000\tB-NUM\n\nEU NNP\tB-ORG\n", "data.conll"))
    assert [example.prompt[0].content for example in rows] == ["The end", "EU"]
    assert reasons(rows) == ["data.conll:4: 'words' holds '10\\xa0000', which is not one word"]


def test_a_blank_in_a_table_of_tabs_is_part_of_a_word(write):
    rows = read_examples(write("-DOCSTART- -X- O\n\nThe \tO\r\nend\tO\n\n10 000\tB-NUM\n", "data.conll"))
    assert [example.prompt[0].content for example in rows] == ["The end"]
    assert reasons(rows) == ["data.conll:6: 'words' holds '10 000', which is not one word"]


def test_csv_fields_over_many_lines_keep_the_lines_true(write):
    table = 'prompt,completion\n"one\n\ntwo",1\n\n,2\nthree,3,4\n"a "" b",5\n"x"y,6\nlast,7\n'
    rows = read_examples(write(table, "data.csv"))
    assert [(e.where, e.messages[0].content) for e in rows.examples] == [
        ("data.csv:2", "one\n\ntwo"),
        ("data.csv:8", 'a " b'),
        ("data.csv:10", "last"),
    ]
    assert [problem.where for problem in rows.problems] == ["data.csv:6", "data.csv:7", "data.csv:9"]
    assert rows.problems[1].reason == "3 fields where the header has 2"


def test_an_open_quote_is_named_where_it_opens(write):
    rows = read_examples(write('prompt,completion\na,b\n"c,d\ne,f\n', "data.csv"))
    assert len(rows.examples) == 1
    assert reasons(rows) == ["data.csv:3: not valid CSV: unexpected end of data (read as one row of 2 lines)"]


def test_long_csv_fields_and_tabs(write):
    long = "word " * 100_000
    rows = read_examples(write(f"prompt\tcompletion\n{long}\tb\n", "data.tsv"))
    assert rows.examples[0].messages[0].content == long


def test_a_csv_cell_may_hold_the_messages_as_json(write):
    cell = json.dumps([TURNS[1], ANSWER]).replace('"', '""')
    assert read_examples(write(f'id,messages\n1,"{cell}"\n', "data.csv")).examples[0].messages == PAIR


def test_parquet_rows_are_numbered(tmp_path):
    path = tmp_path / "data.parquet"
    columns = {"messages": [[TURNS[1], ANSWER], None, [TURNS[1], {"role": "assistant", "content": None}]]}
    pq.write_table(pa.table(columns), path)
    rows = read_examples(path)
    assert [(example.where, example.messages) for example in rows.examples] == [("data.parquet:row 1", PAIR)]
    assert rows.problems == [
        Problem("data.parquet:row 2", "no 'messages', which a row of shape 'messages' has"),
        Problem("data.parquet:row 3", "message 2 is missing"),
    ]


def test_parquet_numbers_and_bytes(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "completion": [1.5, math.nan, math.inf]}), path)
    rows = read_examples(path)
    assert rows.examples[0].answers == ("1.5",)
    assert [problem.reason for problem in rows.problems] == [
        "no 'completion', which a row of shape 'prompt' has",
        "'completion' is missing",
    ]
    pq.write_table(pa.table({"prompt": ["a"], "completion": [b"b"]}), path)
    with pytest.raises(ValueError, match="'completion' is not text but a bytes"):
        read_examples(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="not a whole Parquet file"):
        read_examples(path)
    pq.write_table(pa.table({"prompt": ["a"] * 1000, "completion": ["b"] * 1000}), path)
    damaged = bytearray(path.read_bytes())
    damaged[4:24] = bytes(20)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"data\.parquet: not a whole Parquet file"):
        read_examples(path)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "type", "text"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    sorted({key for shape in SHAPES.values() for key in shape.keys} | {"references", "system", "input"})
)


@given(
    rows=st.lists(st.dictionaries(KEYS, VALUES, max_size=4) | VALUES, max_size=5), shape=st.sampled_from(sorted(SHAPES))
)
def test_no_row_crashes_and_none_is_lost(tmp_path_factory, rows, shape):
    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, ROWS[shape]]), "utf-8")
    read = read_examples(path, shape)
    assert read.examples
    assert len(read.examples) + len(read.problems) == len(rows) + 1


@given(
    content=st.binary(max_size=60),
    name=st.sampled_from(["d.jsonl", "d.json", "d.csv", "d.tsv", "d.parquet", "d.json.gz"]),
)
def test_no_file_fails_otherwise_than_with_a_value_error(tmp_path_factory, content, name):
    path = tmp_path_factory.mktemp("files") / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        read_examples(path)


# ── rows in memory ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_in_memory_are_read_as_a_file_s(shape):
    (example,) = as_examples([ROWS[shape]])
    assert example == Example(READ[shape], where="examples[0]")


def test_a_dataset_any_iterable_and_examples_among_rows_are_taken():
    datasets = pytest.importorskip("datasets")
    expected = [Example(PAIR, where="examples[0]"), Example(PAIR, ("4", "four"), where="examples[1]")]
    rows = [{"Question": "2 + 2?", "answer": 4}, {"question ": "2 + 2?", "answer": "4", "references": ["4", "four"]}]
    assert as_examples(iter(rows)) == expected
    columns = {"question": ["2 + 2?"] * 2, "answer": ["4"] * 2, "references": [None, ["4", "four"]]}
    assert as_examples(datasets.Dataset.from_dict(columns)) == expected
    assert as_examples([Example(PAIR), rows[1]]) == [Example(PAIR), expected[1]]
    assert as_examples([]) == []
    with pytest.raises(DataError, match="of type IterableDataset, which has no length and may have no end"):
        as_examples(datasets.Dataset.from_dict(columns).to_iterable_dataset())


def test_what_read_examples_returns_are_examples(write):
    rows = read_examples(write([ROWS["question"], {"question": "no answer"}, ROWS["question"]]))
    with pytest.warns(UserWarning, match=r"1 row cannot be used; the first: data.jsonl:2: no 'answer'"):
        assert as_examples(rows) == list(rows) == rows.examples
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([ROWS["question"], {"question": "2 + 2?"}], r"^examples\[1\]: no 'answer'"),
        ([{"question": "?"}, {"question": " ", "answer": ""}], r"^examples\[0\]: no 'answer'.* \(and 1 more\)"),
        ([{"q": "2 + 2?", "a": "4"}], r"^examples: no row has a known shape; the first one has 'a', 'q'"),
        ([{**ROWS["question"], **ROWS["prompt"]}], "1 rows fit 'prompt' and as many fit 'question'"),
        ([PAIR], r"examples\[0\] is a tuple, neither a dictionary nor a halka\.Example"),
        ({"train": [ROWS["question"]], "test": []}, r"examples\[0\] is a str.* one split of a dataset"),
        (iter([]), "an iterator that yields nothing, .*: give a list"),
        ("train.jsonl", r"read_examples\('train\.jsonl'\)"),
    ],
)
def test_a_row_in_memory_that_is_no_example_is_named(examples, message):
    with pytest.raises(halka.DataError, match=message):
        as_examples(examples)


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (Example((TURNS[1], PAIR[1])), r"examples\[0\]: message 1 is a dict: make it a halka\.Message"),
        (Example((Message("human", "?"), PAIR[1])), r"message 1 has the role 'human'; .* one of system, user"),
        (Example((Message("user", 4), PAIR[1])), "message 1 is not text but a int"),
        (Example((Message("user", "a\udcff"), PAIR[1]), where="x:7"), "^x:7: message 1 is not UTF-8: it has the byte"),
        (Example(PAIR[1:]), "no message to answer"),
        (Example(PAIR, "xy"), "references are 'xy': give a tuple of texts"),
        (Example(PAIR, ("4", None)), "a reference is not text but a NoneType"),
        (Example(PAIR, (4,)), "a reference is not text but a int"),
        (Example(None), r"its messages are a NoneType: give a tuple of halka\.Message"),
    ],
)
def test_an_example_that_is_none_is_named(example, reason):
    with pytest.raises(DataError, match=reason):
        as_examples([example])
    with pytest.raises(DataError, match=reason.replace("examples", "prompts")):
        as_prompts([example])


def test_an_example_needs_no_references():
    assert as_examples([Example(PAIR, None)]) == [Example(PAIR)]


def test_a_table_is_no_list_of_prompts():
    with pytest.raises(DataError, match="prompts are None: give a list of prompts"):
        as_prompts(None)
    table = pytest.importorskip("pandas").DataFrame([ROWS["prompt"]])
    with pytest.raises(DataError, match="prompts are of type DataFrame: give a list of prompts"):
        as_prompts(table)
    assert [example.prompt for example in as_prompts(table["prompt"])] == [PAIR[:1]]


def test_columns_are_compared_with_their_likes_alone():
    """A header of 100,000 columns fits into a small file."""
    counts = Counter()

    class Column(str):
        __hash__ = str.__hash__
        strip = lower = lambda self: self

        def __eq__(self, other):
            counts["compared"] += 1
            return str.__eq__(self, other)

    _distinct([Column(f"c{number}") for number in range(1000)], "wide.csv")
    assert counts["compared"] < 1000
    with pytest.raises(DataError, match="two columns are called 'c0': rename or remove one"):
        _distinct([Column("c0"), Column("c1"), Column("c0")], "wide.csv")
