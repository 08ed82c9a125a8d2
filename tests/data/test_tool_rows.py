"""Tools in examples: others' forms become one; what a template writes of them is learned, what it drops is refused."""

import json
from datetime import datetime

import pytest

from halka.data.chat import write, written_at
from halka.data.examples import Example, Message, as_examples, read_examples
from halka.data.prompts import as_prompt
from halka.data.tokens import encode, encode_all, encode_prompt
from halka.data.tools import ToolCall, calls_in
from halka.util.errors import DataError
from tokenizers_for_tests import (
    DEEPSEEK,
    HERMES,
    LLAMA3_SPLIT,
    LLAMA3_TOOLS,
    chatml_tokenizer,
    plain_tokenizer,
    qwen_tokenizer,
    tokenizer,
)

CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}}
ASKED = {"role": "user", "content": "Is it warm in Paris?"}
CALL = {"name": "weather", "arguments": {"city": "Paris", "days": 2}}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {**CALL, "arguments": json.dumps(CALL["arguments"])}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": 31}'}
ANSWER = {"role": "assistant", "content": "Yes, 31 degrees."}
ROW = {"messages": [ASKED, CALLED, RESULT, ANSWER], "tools": [WEATHER]}
TOOLS = Message("tools", json.dumps([WEATHER]))
QWEN = qwen_tokenizer()
LLAMA3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA = tokenizer(LLAMA3_TOOLS, LLAMA3_TOKENS, "<s>", "<|eot_id|>", LLAMA3_SPLIT)


def example_of(row) -> Example:
    return as_examples([row])[0]


def learned(row, tokenizer) -> list[str]:
    """The texts of the runs of tokens that carry loss."""
    tokens = encode(example_of(row), tokenizer)
    runs: list[list[int]] = []
    for at, (token, loss) in enumerate(zip(tokens.ids, tokens.loss, strict=True)):
        if loss and not tokens.loss[at - 1]:
            runs.append([])
        if loss:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs]


# ── rows ──


def test_a_conversation_has_its_tools_calls_and_results():
    example = example_of({**ROW, "system": "Be brief."})
    assert [message.role for message in example.messages] == [
        "system",
        "tools",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert example.messages[1] == TOOLS
    assert example.messages[3].calls == (ToolCall("weather", '{"city": "Paris", "days": 2}', "call_1"),)
    assert example.messages[4] == Message("tool", '{"degrees": 31}', call_id="call_1")
    assert example_of({"messages": [Message("system", "Be brief."), ASKED, CALLED, RESULT, ANSWER]} | ROW) != example


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, {**CALLED, "tool_calls": [CALL]}], "tools": json.dumps([WEATHER])},
        {"messages": [ASKED, {"role": "assistant", "function_call": CALL}], "functions": [WEATHER["function"]]},
        {
            "conversations": [
                {"from": "human", "value": ASKED["content"]},
                {"from": "function_call", "value": json.dumps(CALL)},
            ],
            "tools": json.dumps([WEATHER["function"]]),
        },
        {
            "prompt": [ASKED],
            "completion": [{"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 1}],
            "tools": [{"function": {key: WEATHER["function"][key] for key in ("parameters", "description", "name")}}],
        },
        {
            "messages": [ASKED, {**CALLED, "tool_calls": [{"function": CALL}], "function_call": None}],
            "tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": None}}],  # as a table's columns have it
        },
    ],
)
def test_others_forms_are_one(row, tmp_path):
    expected = Example(
        (
            TOOLS,
            Message("user", ASKED["content"]),
            Message("assistant", "", calls=(ToolCall("weather", json.dumps(CALL["arguments"])),)),
        )
    )
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    rows = read_examples(file)
    assert rows.examples[0].messages == expected.messages == example_of(row).messages
    assert not rows.unread
    assert as_examples([rows.examples[0].plain])[0].messages == expected.messages


def test_results_are_named_by_function_or_call_and_may_be_empty(tmp_path):
    file = tmp_path / "rows.jsonl"
    results = [{**RESULT, "name": "weather"}, {"role": "function", "name": "weather", "content": ""}]
    results += [{"from": "observation", "value": "[]"}, {"role": "ipython", "content": "31"}]
    rows = [{"messages": [{**ASKED, "name": "Ada"}, CALLED, result, ANSWER], "tools": [WEATHER]} for result in results]
    file.write_text("\n".join(map(json.dumps, rows)))
    read = read_examples(file)
    assert [(m.content, m.name, m.call_id) for m in (example.messages[3] for example in read)] == [
        ('{"degrees": 31}', "weather", "call_1"),
        ("", "weather", ""),
        ("[]", "", ""),
        ("31", "", ""),
    ]
    assert read.unread == ["messages.name"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tools": "[{"}, "'tools' is not valid JSON"),
        ({"tools": {"name": "weather"}}, "'tools' is not a list of functions but a dict"),
        ({"tools": ["weather"]}, r"tools\[0\] is no function"),
        ({"tools": [WEATHER, {"type": "web_search"}]}, r"tools\[1\] is no function but of type 'web_search'"),
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\] has no name of a function"),
        ({"tools": [{"name": "a", "parameters": {"default": float("inf")}}]}, "'tools' cannot be written as JSON"),
        ({"messages": [ASKED, {**CALLED, "tool_calls": [{"id": 1}]}]}, "'tool_calls' 1 has no name of a function"),
        ({"messages": [ASKED, {**CALLED, "tool_calls": [{**CALL, "arguments": "{"}]}]}, "arguments is not valid JSON"),
        ({"messages": [ASKED, {**CALLED, "tool_calls": [{**CALL, "arguments": [1]}]}]}, "no object but a list"),
        ({"messages": [{**ASKED, "tool_calls": [CALL]}, ANSWER]}, "message 1 calls a tool, and is by the user"),
        ({"messages": [ASKED, CALLED, RESULT]}, "the last message is the tool's"),
        ({"messages": [ASKED, {"role": "function_call", "content": "[]"}]}, "message 2 is empty"),
    ],
)
def test_what_is_no_tool_or_call_is_refused(row, reason):
    with pytest.raises(DataError, match=reason):
        as_examples([ROW | row])


def test_a_label_and_a_raw_text_have_no_tools():
    for row in ({"text": "Fine!", "label": "good"}, {"words": ["a"], "tags": ["O"]}):
        with pytest.raises(DataError, match=r"has tools, which a row of shape '(labelled|tagged)' has no use for"):
            as_examples([{**row, "tools": [WEATHER]}])


# ── templates ──


@pytest.mark.parametrize(
    ("tokenizer", "call", "answer"),
    [
        (
            QWEN,
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call><|im_end|>',
            "<think>\n\n</think>\n\nYes, 31 degrees.<|im_end|>",
        ),
        (
            LLAMA,
            '{"name": "weather", "parameters": {"city": "Paris", "days": 2}}<|eot_id|>',
            "Yes, 31 degrees.<|eot_id|>",
        ),
        (
            tokenizer(DEEPSEEK),
            '<|call|>weather\n```json\n{"city": "Paris", "days": 2}\n```<|im_end|>',
            "Yes, 31 degrees.<|im_end|>",
        ),
    ],
)
def test_calls_carry_loss_as_the_template_writes_them(tokenizer, call, answer):
    assert learned(ROW, tokenizer) == [call, answer]
    begin = answer.partition("Yes")[0]  # before the last answer alone
    assert learned({**ROW, "messages": [ASKED, CALLED]}, tokenizer) == [f"{begin}{call}"]
    assert learned({**ROW, "messages": [ASKED, CALLED, RESULT, CALLED]}, tokenizer) == [call, f"{begin}{call}"]
    assert learned({**ROW, "messages": [ASKED, {**CALLED, "weight": 0}, RESULT, ANSWER]}, tokenizer) == [answer]
    tokens, example = encode(example_of(ROW), tokenizer), example_of(ROW)
    prompt = encode_prompt(example, tokenizer)
    assert tokens.ids[: len(prompt)] == prompt
    assert "weather" in tokenizer.decode(prompt)


def test_text_and_several_calls_stand_in_one_answer():
    other = {"name": "weather", "arguments": {"city": "ঢাকা", "days": 3.5, "now": True, "by": None}}
    both = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, other]}
    row = {"messages": [ASKED, both, RESULT, RESULT, ANSWER], "tools": [WEATHER]}
    texts = [
        '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}',
        '{"name": "weather", "arguments": {"city": "ঢাকা", "days": 3.5, "now": true, "by": null}}',
    ]
    calls = "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)
    assert learned(row, QWEN)[0] == f"Let me see.\n{calls}<|im_end|>"
    assert example_of({**row, "messages": [ASKED, both]}).answers == (f"Let me see.\n{calls}",)
    with pytest.raises(DataError, match="only supports single tool-calls at once!"):
        encode(example_of(row), LLAMA)


def test_conversations_with_other_tools_or_none_are_written_in_their_order():
    other = {**WEATHER, "function": {**WEATHER["function"], "name": "forecast"}}
    rows = [ROW, {"messages": [ASKED, ANSWER]}, {**ROW, "tools": [other]}, {**ROW, "messages": [ASKED, ANSWER]}]
    examples = as_examples(rows)
    encoded = encode_all(examples, QWEN)
    assert [QWEN.decode(item.ids).count("forecast") for item in encoded.items] == [0, 0, 1, 0]
    assert [item.ids for item in encoded.items] == [encode(example, QWEN).ids for example in examples]


def test_a_template_without_a_place_for_tools_is_refused():
    example = example_of({**ROW, "messages": [{**ASKED, "content": "weather? Of a city."}, ANSWER]})
    with pytest.raises(DataError, match="chat template has no place for tools: take a base that calls tools"):
        encode(example, chatml_tokenizer())
    with pytest.raises(DataError, match="no place for tools"):
        encode_prompt(example, chatml_tokenizer())
    with pytest.raises(DataError, match="no chat template"):
        encode(example, plain_tokenizer())
    with pytest.raises(DataError, match="no chat template"):
        encode(example_of({"messages": [ASKED, CALLED]}), plain_tokenizer())


WHOLE = "<tool_call>\n{{ call.function | tojson }}\n</tool_call>"
IN_HERMES = "{{ message.content }}{% for call in message.tool_calls or [] %}\n" + WHOLE + "{% endfor %}"
TALKS = {**CALLED, "content": "Let me see."}
TWICE = {
    **CALLED,
    "tool_calls": [{"name": "weather", "arguments": {"city": "Paris", "days": days}} for days in (12, 2)],
}


@pytest.mark.parametrize(
    ("writes", "called", "reason"),
    [
        ("{{ message.content }}", CALLED, "drops calls of tools"),
        (
            IN_HERMES.replace(WHOLE, "{{ call.function.name }}"),
            CALLED,
            "drops or rewrites a call of 'weather' in message 2",
        ),
        (
            IN_HERMES.replace("message.tool_calls or []", "(message.tool_calls or [])[:1]"),
            TWICE,
            "or rewrites a call of",
        ),
        (
            IN_HERMES.replace(
                "{{ message.content }}", "{% if not message.tool_calls %}{{ message.content }}{% endif %}"
            ),
            TALKS,
            "drops the text before a call in message 2",
        ),
    ],
)
def test_a_template_that_drops_something_of_a_call_is_refused(writes, called, reason):
    assert IN_HERMES in HERMES
    drops = tokenizer(HERMES.replace(IN_HERMES, writes))
    user = {
        **ASKED,
        "content": 'Call weather with {"city": "Paris", "days": 2}. Let me see.',
    }  # it stands elsewhere, too
    for rest in ((RESULT, ANSWER), ()):
        row = {"messages": [user, called, *rest], "tools": [WEATHER]}
        with pytest.raises(DataError, match=reason if rest or called is not TALKS else "drops"):
            encode(example_of(row), drops)


def test_a_template_that_drops_calls_is_refused_where_they_are_read_alone():
    drops = tokenizer(HERMES.replace(IN_HERMES, "{{ message.content }}"))
    row = {"messages": [ASKED, {**CALLED, "weight": 0}, RESULT, ANSWER], "tools": [WEATHER]}
    with pytest.raises(DataError, match="drops calls of tools: take a base that calls tools"):
        encode(example_of(row), drops)
    with pytest.raises(DataError, match="drops calls of tools"):
        encode_prompt(example_of(row), drops)


def test_arguments_that_stand_elsewhere_as_python_writes_them_change_nothing():
    shown = {**ASKED, "content": f"Call weather with {CALL['arguments']}, it's now."}
    odd = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"it's": 1}}]}
    for called, text in ((CALLED, '{"city": "Paris", "days": 2}'), (odd, '{"it\'s": 1}')):
        row = {"messages": [shown, called, {**RESULT, "content": str(CALL["arguments"])}, ANSWER], "tools": [WEATHER]}
        assert learned(row, LLAMA)[0] == f'{{"name": "weather", "parameters": {text}}}<|eot_id|>'


def test_answers_before_a_call_are_closed_by_their_own_token():
    closes = tokenizer(
        HERMES.replace(
            "<|im_end|>\n{% endfor %}{% if add",
            "<|im_end|>\n{% endfor %}{{ eos_token if not add_generation_prompt }}{% if add",
        ),
        eos="<|end|>",
    )
    rows = [[ASKED, ANSWER, ASKED, CALLED], [ASKED, CALLED, RESULT, ANSWER]]
    first, second = (learned({"messages": messages, "tools": [WEATHER]}, closes) for messages in rows)
    assert first[0] == "Yes, 31 degrees.<|im_end|>"
    assert first[1].endswith("</tool_call><|im_end|>\n<|end|>")
    assert second[0].endswith("</tool_call><|im_end|>")


def test_several_templates_of_one_base_write_their_time():
    clock = "{{ strftime_now('%Y') }}"
    both = tokenizer(HERMES)
    both.chat_template = {
        "default": clock + HERMES.replace("{% if tools %}", "{% if false %}"),
        "tool_use": clock + HERMES,
    }
    with written_at(datetime(1971, 12, 16)):
        texts = [both.decode(encode(example_of(row), both).ids) for row in (ROW, {"messages": [ASKED, ANSWER]})]
    assert [text.startswith("1971") for text in texts] == [True, True]
    assert ["Call one as" in text for text in texts] == [True, False]


def test_the_reason_of_a_refusal_is_the_templates_own():
    strict = tokenizer(
        "{% if messages | length > 2 %}{{ raise_exception('Roles must alternate') }}{% endif %}" + QWEN.chat_template
    )
    row = {"messages": [{"role": "system", "content": "Be brief."}, ASKED, CALLED, RESULT, ANSWER]}
    with pytest.raises(DataError, match=r"Roles must alternate\. It has tools, calls or results: take a base"):
        encode(example_of(row), strict)


def test_nulls_of_a_table_are_left_out_and_those_of_a_schema_stay():
    def parameters(**more):
        own = {"name": "a", "parameters": {"type": "object", "properties": {"x": {"type": "integer", **more}}}}
        (tools, *_) = example_of({**ROW, "tools": [own]}).messages
        return json.loads(tools.content)[0]["function"]["parameters"]["properties"]["x"]

    assert parameters(default=None) == {"type": "integer", "default": None}
    assert parameters(default=None, minimum=None) == {"type": "integer"}


def test_a_template_that_moves_tools_to_the_last_question_is_refused_but_for_one_answer():
    moves = tokenizer(
        "{% for message in messages %}{% if message.role == 'user' and loop.index0 == last.user %}{{ tools | tojson }}"
        "{% endif %}<|im_start|>{{ message.role }}\n{{ message.content }}{% for call in message.tool_calls or [] %}"
        "{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    moves.chat_template = (
        "{% set last = namespace(user=-1) %}{% for message in messages %}{% if message.role == 'user' %}"
        "{% set last.user = loop.index0 %}{% endif %}{% endfor %}"
    ) + moves.chat_template
    again = {**ROW, "messages": [*ROW["messages"], {"role": "user", "content": "And in Dhaka?"}, ANSWER]}
    with pytest.raises(DataError, match="answer in message 2 differently when it prompts for that answer"):
        encode(example_of(again), moves)
    assert len(learned(ROW, moves)) == 2
    first = [turn | {"weight": 0} if turn["role"] == "assistant" else turn for turn in ROW["messages"]]
    assert len(learned({**again, "messages": [*first, *again["messages"][4:]]}, moves)) == 1


def test_a_prompt_may_be_a_row_with_tools():
    prompt = as_prompt(ROW, "prompt 1")
    assert [message.role for message in prompt.prompt] == ["tools", "user", "assistant", "tool"]
    assert encode_prompt(prompt, QWEN) == encode_prompt(example_of(ROW), QWEN)
    with pytest.raises(DataError, match=r"^prompt 1: no prompt: a row has one of"):
        as_prompt({"tools": [WEATHER]}, "prompt 1")
    (text,) = write([prompt.prompt], QWEN, generation_prompt=True)
    assert str(text).endswith("</tool_response><|im_end|>\n<|im_start|>assistant\n")


# ── answers ──


def test_calls_are_read_out_of_answers_whatever_stands_around_them():
    paris = ("weather", {"city": "Paris", "days": 2})
    assert calls_in('No call, but {braces} and {"name": 1}.') == []
    assert calls_in(example_of({**ROW, "messages": [ASKED, CALLED]}).answers[0]) == [paris]
    assert calls_in(f'Well: {{"name": "weather", "parameters": {json.dumps(paris[1])}}}') == [paris]
    assert calls_in(f"[{json.dumps(CALL)}, {json.dumps(CALL)}]") == [paris, paris]
    assert calls_in(json.dumps({**CALL, "arguments": json.dumps(paris[1])})) == [paris]
    assert calls_in('{"a": ' * 10_000) == []
