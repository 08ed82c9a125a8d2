"""Tools: calls out of a base's text, whole and streamed; demanded ones enforced; a 400 where a base knows none."""

from __future__ import annotations

import json

import pytest

from halka.data.prompts import as_prompt
from halka.data.tokens import encode_prompt
from halka.engine.json_schema import enforceable
from halka.server.answers.chat_request import ChatRequest, Tool
from halka.server.answers.prompts import chat_tokens
from halka.server.answers.tools import Call, CallReader, Toolbox, toolbox_of
from json_schema_for_tests import read, valid
from serving_for_tests import PARIS, WEATHER, InProcess, make_base, no_white_space
from tokenizers_for_tests import hermes_tokenizer, qwen_tokenizer

CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}},
}
BODY = {"messages": [{"role": "user", "content": "Is it warm in Paris?"}], "tools": [WEATHER, CLOCK], "model": "hermes"}
TIME = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'


@pytest.fixture(scope="module")
def hermes(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base") / "hermes", hermes_tokenizer())


@pytest.fixture
def saying(hermes, tmp_path):
    """Servers of a base that says these texts."""
    opened = []

    def open_one(*texts):
        opened.append(InProcess.open(hermes, None, tmp_path / "data", says=texts))
        return opened[-1].__enter__()

    yield open_one
    for one in opened:
        one.__exit__(None, None, None)


def whole(server, **more):
    answer = server.client.post("/v1/chat/completions", json=BODY | more)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"]


def streamed(server, **more):
    answer = server.client.post("/v1/chat/completions", json=BODY | more | {"stream": True})
    events = answer.content.split(b"\n\n")[:-2]
    return [json.loads(event.removeprefix(b"data: "))["choices"][0] for event in events]


def test_a_call_is_read_out_of_the_text(saying):
    server = saying(PARIS)
    (choice,) = whole(server)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    prompt = server.service.tokenizer.decode(server.service.engine.asked[0].prompt)
    assert json.dumps(WEATHER["function"]["parameters"]) in prompt


def test_text_and_several_calls_stream_in_order(saying):
    server = saying(f"I look. < {PARIS}\n{TIME}\n")
    first, *choices, last = streamed(server)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "I look. <"
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls", [])]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "weather"), (1, "clock")]
    assert len({call["id"] for call in calls}) == 2
    assert all(choice["delta"].get("tool_calls") != [] for choice in choices)
    assert last["finish_reason"] == "tool_calls"
    assert last["delta"] == {}
    (message,) = [choice["message"] for choice in whole(server)]
    assert message["content"] == "I look. <"
    assert len(message["tool_calls"]) == 2


def test_one_call_alone_where_several_are_not_wanted(saying):
    (choice,) = whole(saying(PARIS + TIME), parallel_tool_calls=False)
    assert len(choice["message"]["tool_calls"]) == 1


def test_what_is_no_call_is_text(saying):
    half = TIME.replace("{}", r'{"at": "\ud83d"}')  # of a character, which no client could send back
    for text in ("No.", "<tool_call>nonsense</tool_call>", "1 < 2 <tool", '<tool_call>{"no": 1}', "</tool_call>", half):
        (choice,) = whole(saying(text))
        assert choice["message"]["content"] == text
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_a_call_that_was_not_closed_counts(saying):
    (choice,) = whole(saying(PARIS.removesuffix("\n</tool_call>")))
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_calls_and_results_reach_the_template(saying):
    server = saying("It is warm.")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    talk = [
        *BODY["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "25 degrees"},
    ]
    (choice,) = whole(server, messages=talk)
    assert choice["message"]["content"] == "It is warm."
    prompt = server.service.tokenizer.decode(server.service.engine.asked[0].prompt)
    assert '"arguments": {"city": "Paris"}' in prompt
    assert "<|im_start|>tool\n25 degrees" in prompt


@pytest.mark.parametrize(
    ("choice", "names"),
    [("required", {"weather", "clock"}), ({"type": "function", "function": {"name": "weather"}}, {"weather"})],
    ids=["required", "named"],
)
def test_a_demanded_call_is_enforced(hermes, tmp_path, choice, names):
    with InProcess.open(hermes, None, tmp_path / "data") as server:
        (made,) = whole(server, tool_choice=choice, max_tokens=100, logit_bias=no_white_space(server.service))
    (call,) = made["message"]["tool_calls"]
    assert call["function"]["name"] in names
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "weather":
        assert arguments["city"] in ("Paris", "Dhaka")


@pytest.mark.parametrize("others", [(), (CLOCK,)], ids=["alone", "one of two"])
@pytest.mark.parametrize(
    ("parameters", "good", "bad"),
    [
        (
            {
                "properties": {"to": {"$ref": "#/$defs/Place"}},
                "$defs": {"Place": {"type": "string"}},
                "required": ["to"],
            },
            {"to": "Paris"},
            {"to": 1},
        ),
        (
            {"properties": {"name": {"type": "string"}, "nick": {"$ref": "#/properties/name"}}, "required": ["nick"]},
            {"nick": "bob"},
            {"nick": 1},
        ),
        (
            {"properties": {"of": {"type": "array", "items": {"$ref": "#"}}}, "additionalProperties": False},
            {"of": [{"of": []}]},
            {"of": [{"name": "book", "arguments": {}}]},
        ),
        (
            {
                "properties": {"enum": {"$ref": "#/$defs/a"}, "$ref": {"const": {"$ref": "#"}}},
                "$defs": {"a": {"type": "null"}},
            },
            {"enum": None, "$ref": {"$ref": "#"}},
            {"enum": 1},
        ),
    ],
    ids=["$defs", "a property", "itself", "names of keywords"],
)
def test_references_within_a_tools_parameters_stay_within_them(others, parameters, good, bad):
    book = {"type": "function", "function": {"name": "book", "parameters": {"type": "object", **parameters}}}
    tools = [Tool.model_validate(tool) for tool in (*others, book)]
    schema = Toolbox(tools, tuple(tool.function.name for tool in tools)).constraint.schema
    enforceable(schema)
    for arguments, fits in ((good, True), (bad, False)):
        assert valid(read(json.dumps({"name": "book", "arguments": arguments})), schema) == fits


def test_arguments_that_cannot_be_written_stay_a_text(saying):
    server = saying("x")
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "\\ud800"}'}}
    talk = [
        *BODY["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "25 degrees"},
    ]
    assert whole(server, messages=talk)
    prompt = server.service.tokenizer.decode(server.service.engine.asked[0].prompt)
    assert "ud800" in prompt


def test_schemas_of_demanded_tools_have_only_so_many_bytes(saying):
    server = saying("x")
    large = {"name": "large", "parameters": {"type": "object", "description": "x" * 66_000}}
    tools = [{"type": "function", "function": large}, CLOCK]
    answer = server.client.post("/v1/chat/completions", json=BODY | {"tools": tools, "tool_choice": "required"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "tools"
    assert "over the 65,536" in answer.json()["error"]["message"]
    named = {"type": "function", "function": {"name": "clock"}}
    assert whole(server, tools=tools, tool_choice=named), "which nobody compiles"


def test_choices_that_cannot_be_met_are_named(saying, client):
    server = saying("x")
    unknown = {"type": "function", "function": {"name": "stranger"}}
    for where, change, param in (
        (server.client, {"tool_choice": unknown}, "tool_choice"),
        (server.client, {"tools": None, "tool_choice": "required"}, "tool_choice"),
        (server.client, {"response_format": {"type": "json_object"}}, "response_format"),
        (server.client, {"functions": [{"name": "x"}]}, "functions"),
        (client, {"model": "tiny"}, "tools"),
        (client, {"model": "tiny", "tools": None, "messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ):
        answer = where.post("/v1/chat/completions", json=BODY | change)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == param
    assert client.post("/v1/chat/completions", json=BODY | {"model": "tiny", "tool_choice": "none"}).status_code == 200


@pytest.mark.parametrize("pace", [1, 2, 7, 1000])
def test_pieces_of_any_size_are_read_alike(pace):
    reader = CallReader(Toolbox([Tool.model_validate(CLOCK)]))
    text = f"One <b>\n{PARIS}\n {TIME} two "
    parts = [part for start in range(0, len(text), pace) for part in reader.push(text[start : start + pace])]
    parts += reader.end()
    assert "".join(part for part in parts if isinstance(part, str)) == "One <b> two"
    assert [part.name for part in parts if isinstance(part, Call)] == ["weather", "clock"]


@pytest.mark.parametrize("pace", [1, 7, 1000])
@pytest.mark.parametrize(
    ("text", "calls", "rest"),
    [
        ('<tool_call>{"name": "clock", "arguments": {"a": "</tool_call>"}}</tool_call> so', 1, " so"),
        ('<tool_call>{"name": "clock", "arguments": {"a": "\\"</tool_call>"}}', 1, ""),
        (
            '<tool_call>{"name": "clo</tool_call> and\n<tool_call>{"name": "clock"}</tool_call>',
            1,
            '{"name": "clo</tool_call>',
        ),
        ('<tool_call>{"name": "clo</tool_call> and <tool_call>{"name": "clock"}', 1, " and"),
        ('<tool_call>{"name": "clo</tool_call> and', 0, " and"),
    ],
    ids=["in a text", "after a quote", "no call, then one", "no call, then one to the end", "no call"],
)
def test_a_mark_within_a_text_of_a_call_does_not_close_it(text, calls, rest, pace):
    reader = CallReader(Toolbox([Tool.model_validate(CLOCK)]))
    parts = [part for start in range(0, len(text), pace) for part in reader.push(text[start : start + pace])]
    parts += reader.end()
    assert [part.name for part in parts if isinstance(part, Call)] == ["clock"] * calls
    assert rest in "".join(part for part in parts if isinstance(part, str))


def test_a_conversation_with_tools_has_the_tokens_that_training_has():
    call = {"name": "weather", "arguments": '{"city": "Paris"}'}
    messages = [
        {"role": "user", "content": "Is it warm in Paris?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "a", "content": "31"},
    ]
    backwards = {"function": dict(reversed(WEATHER["function"].items())), "type": "function"}
    body = ChatRequest.model_validate({"model": "m", "messages": messages, "tools": [backwards]})
    tokenizer = qwen_tokenizer()
    toolbox = toolbox_of(tokenizer, body.messages, body.tools, None, several=True)
    served = chat_tokens(tokenizer, [message.for_template() for message in body.messages], toolbox)
    for tools in ([backwards], [backwards["function"]], json.dumps([WEATHER])):
        assert encode_prompt(as_prompt({"messages": messages, "tools": tools}, "row"), tokenizer) == served
