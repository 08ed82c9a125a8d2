"""What a constraint lets through keeps to it, and what cannot be enforced in full is refused by name."""

from __future__ import annotations

import random
import re

import llguidance
import pytest

import halka
from engine_for_tests import run
from halka.engine import Engine, Request, Stopping
from halka.engine.constraint import JSON_OBJECT, Constraint, Constraints
from halka.engine.json_schema import FORMATS, enforceable
from halka.models import load_base
from halka.util.errors import HalkaError
from json_schema_for_tests import read, valid
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer
from vocabularies_for_tests import sentencepiece_tokenizer

TOKENIZER = chatml_tokenizer()
END = TOKENIZER.eos_token_id
WIDTH = len(TOKENIZER) + 37  # the head is wider than the vocabulary
CONSTRAINTS = Constraints(TOKENIZER, frozenset([END]))

PERSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS = [
    PERSON,
    {"type": "object", "maxProperties": 2},
    {"type": "object", "required": ["b", "a"], "minProperties": 3, "maxProperties": 3},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "null"}},
    {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
    {"properties": {"ab": {"type": "string"}}, "patternProperties": {"^a": {"maxLength": 2}}, "type": "object"},
    {"type": "object", "properties": {"a": True, "b": False}, "allOf": [{"additionalProperties": {"minimum": 3}}]},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False, "minItems": 1},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": ["integer", "null"], "minimum": -3, "exclusiveMaximum": 12},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    {"type": "number", "multipleOf": 0.3},
    {"type": "integer", "multipleOf": 7, "minimum": 10},
    {"type": "string", "pattern": r"^\d{2,4}-[\w.]+$"},
    {"type": "string", "pattern": "[ab]c", "maxLength": 8},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"const": {"a": [1, "x", None]}},
    {"enum": [1, "a", None, [True], {"b": 2}]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 20}, {"multipleOf": 2}]},
    {"anyOf": [{"type": "integer", "maximum": 5}, {"type": "string", "maxLength": 2}]},
    {"oneOf": [{"type": "boolean"}, {"type": "array", "maxItems": 1}]},
    {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": "a"}, "n": {"type": "integer"}}, "required": ["k", "n"]},
            {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"], "additionalProperties": False},
        ]
    },
    {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}}},
    {"properties": {"a": {"type": "object"}, "b": {"$ref": "#/properties/a"}}, "required": ["b"], "type": "object"},
    {"type": "object", "properties": {"a/b": {"type": "null"}, "é": {"type": "null"}}, "required": ["a/b"]},
    *({"type": "string", "format": name} for name in FORMATS),
]


def nested(depth: int) -> dict:
    return {"items": nested(depth - 1)} if depth else {}


REFUSED = {
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 3}},
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "contains": {"contains": {"type": "integer"}},
    "propertyNames": {"propertyNames": {"pattern": "^a"}},
    "dependentRequired": {"dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"dependentSchemas": {"a": {"required": ["b"]}}},
    "unevaluatedProperties": {"unevaluatedProperties": False},
    "unevaluatedItems": {"unevaluatedItems": False},
    "minContains": {"minContains": 1},
    "contentEncoding": {"contentEncoding": "base64"},
    "nullable": {"type": "string", "nullable": True},
    "maxlength": {"type": "string", "maxlength": 3},
    "x-guidance": {"x-guidance": {"lenient": True}},
    "$anchor": {"$anchor": "a"},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "$id": {"properties": {"a": {"$id": "https://example.com/a"}}},
    "minProperties": {"type": "object", "minProperties": 2},
    "format": {"format": "idn-email"},
    "oneOf": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    "pattern": {"pattern": "^[^a&&b]$"},
    "patternProperties": {"patternProperties": {"[a[b]": True}},
    "patternProperty": {"patternProperties": {"^a": {"type": "integer"}, "b$": {"type": "null"}}},
    "const": {"const": "\u0001"},
    "enum": {"enum": ["a", "\x7f"]},
    "'multipleOf'": {"type": "integer", "multipleOf": 100_003},
    "at #/allOf/1: 'multipleOf'": {"allOf": [{"multipleOf": 997}, {"multipleOf": 9.91}]},
    "look-around": {"pattern": "(?=a)b"},
    "http://example.com": {"$ref": "http://example.com/a"},
    "#/default": {"default": {"type": "integer", "wrong": 1}, "$ref": "#/default"},
    "integr": {"type": "integr"},
    "nsatisfiable": {"type": "string", "enum": [1]},
    "no JSON": {"const": {1}},
    "nested deeper": nested(100),
    "'format'": {"format": [], "allOf": 3},
}
INSIDE = [
    ("properties", {"a": None}),
    ("patternProperties", {"a": None}),
    ("$defs", {"a": None}),
    ("additionalProperties", None),
    ("items", None),
    ("items", [None]),
    ("prefixItems", [None]),
    ("anyOf", [None]),
    ("allOf", [None]),
    ("oneOf", [None]),
]


def accepts(constraint: Constraint, text: str) -> bool:
    """Whether the text, in the tokenizer's tokens, may be written and may end."""
    matcher = CONSTRAINTS.matcher(constraint)
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        if not matcher.mask(WIDTH)[token]:
            return False
        matcher.accept(token)
    return bool(matcher.mask(WIDTH)[END])


def walk(constraint: Constraint, seed: int, steps: int = 150) -> str | None:
    """A text of tokens drawn under the mask, which ends as soon as dice let it; None if it did not end."""
    matcher = CONSTRAINTS.matcher(constraint)
    dice = random.Random(seed)
    closing = {*TOKENIZER.convert_tokens_to_ids(['"', "}", "]", ":", "@", "0", "1"])}
    tokens = []
    for _ in range(steps):
        allowed = matcher.mask(WIDTH).nonzero()[:, 0].tolist()
        assert max(allowed) < len(TOKENIZER)
        assert not {*allowed} & {*TOKENIZER.all_special_ids} - {END}
        if END in allowed and (len(allowed) == 1 or dice.random() < 0.4):
            matcher.accept(END)
            assert matcher.done
            return TOKENIZER.decode(tokens)
        allowed = [token for token in allowed if token != END]
        short = [token for token in allowed if token in closing]
        tokens.append(dice.choice(short if short and dice.random() < 0.5 else allowed))
        matcher.accept(tokens[-1])
    return None


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_every_text_of_an_accepted_schema_is_valid(schema):
    texts = [text for seed in range(25) if (text := walk(Constraint(schema=schema), seed)) is not None]
    assert len(texts) > 5
    for text in texts:
        assert valid(read(text), schema), text


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (PERSON, '{"name": "Ünal 😀", "age": 31}', '{"name": "A", "age": 151}'),
        ({"properties": {"a": {"type": "null"}}, "type": "object"}, '{"b":1}', r'{"\u0061":1}'),
        ({"patternProperties": {"^a": {"type": "null"}}, "type": "object"}, '{"b":1}', r'{"\u0061":1}'),
        ({"type": "object"}, '{"a":{"b":[1,"x"]}}', "[]"),
        ({"type": "object", "required": ["a"], "minProperties": 2}, '{"a":1,"b":1}', '{"a":1,"a":1}'),
        ({"format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ({"format": "date"}, '"2000-02-29"', '"1900-02-29"'),
        ({"format": "date"}, '"0001-12-31"', '"0000-12-31"'),
        ({"format": "date", "pattern": "^2", "allOf": [{"maxLength": 10}]}, '"2024-01-01"', '"1024-01-01"'),
        ({"format": "date-time"}, '"2024-02-29T23:59:59Z"', '"2023-02-29T23:59:59Z"'),
        ({"format": "time"}, '"22:59:59Z"', '"22:59:60Z"'),
        ({"format": "hostname"}, '"a.b"', '"' + "a." * 127 + 'a"'),
        ({"pattern": r"^\d\w$"}, '"1a"', '"٣é"'),
        ({"pattern": "^[a-z]+--[^&]$"}, '"ab--c"', '"ab--&"'),
        ({"minimum": 3}, "4", "3e-5"),
        ({"type": "integer", "multipleOf": 86_400}, "172800", "172801"),
        ({"maxLength": 1}, '"😀"', '"😀a"'),
        ({"$id": "https://example.com/a", "$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}}, "null", "1"),
        ({"title": "t", "examples": [1], "default": {"wrong": 1}, "type": "null"}, "null", "1"),
    ],
    ids=str,
)
def test_texts_are_told_apart(schema, good, bad):
    assert accepts(Constraint(schema=schema), good)
    assert not accepts(Constraint(schema=schema), bad)


def test_only_characters_that_json_writes_by_number_are_refused():
    for text in ("C:\\u0041", "\\u00e9", "\\\\u0007"):  # a backslash, then letters
        assert enforceable({"const": text}) == {"const": text}
        assert enforceable({"enum": [text]}) == {"enum": [text]}
    for text in ("\x07", "\\\x07", "\x7f"):
        with pytest.raises(HalkaError, match="a control character in it cannot be written"):
            enforceable({"const": text})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_enforced_in_full_is_refused_by_name(name):
    with pytest.raises(HalkaError, match=re.escape(name)):
        CONSTRAINTS.matcher(Constraint(schema=REFUSED[name]))


@pytest.mark.parametrize(("keyword", "value"), INSIDE, ids=str)
def test_schemas_inside_are_checked(keyword, value):
    wrong = {"type": "string", "maxlength": 3}
    inside = {"a": wrong} if isinstance(value, dict) else [wrong] if isinstance(value, list) else wrong
    with pytest.raises(HalkaError, match=rf"schema at #/{re.escape(keyword)}.*'maxlength'"):
        CONSTRAINTS.matcher(Constraint(schema={keyword: inside}))


@pytest.mark.parametrize(
    ("regex", "good", "bad"),
    [
        ("[a-c]+d?", ["a", "abcd"], ["", "d", "abdd"]),
        ("^(yes|no)$", ["yes", "no"], ["maybe", "yesno"]),
        ("a/b\n", ["a/b\n"], ["a/b"]),
        ("x|xyz", ["x", "xyz"], ["xy"]),
        ("(?s).{2}", ["\n😀", "আমি"[:2]], ["a"]),
        ("", [""], ["a"]),
    ],
)
def test_a_regular_expression_matches_the_whole_text(regex, good, bad):
    constraint = Constraint(regex=regex)
    assert [accepts(constraint, text) for text in good] == [True] * len(good)
    assert [accepts(constraint, text) for text in bad] == [False] * len(bad)
    for seed in range(10):
        text = walk(constraint, seed)
        assert text is None or re.fullmatch(regex, text)


@pytest.mark.parametrize("regex", ["(?=a)b", r"(a)\1", r"\bword", "[", "x^y", "\ud800"])
def test_an_expression_that_cannot_be_enforced_is_refused(regex):
    with pytest.raises(HalkaError, match=re.escape(f"regex {regex!r} cannot be enforced: ")) as error:
        CONSTRAINTS.matcher(Constraint(regex=regex))
    assert "\n" not in str(error.value)


def test_the_end_token_is_allowed_when_the_text_may_end_and_alone_when_it_must():
    matcher = CONSTRAINTS.matcher(Constraint(regex="ab?"))
    a, b = TOKENIZER.convert_tokens_to_ids(["a", "b"])
    assert not matcher.mask(WIDTH)[END]
    matcher.accept(a)
    assert matcher.mask(WIDTH).nonzero()[:, 0].tolist() == sorted([b, END])
    assert not matcher.done
    matcher.accept(b)
    assert matcher.done
    assert matcher.mask(WIDTH).nonzero()[:, 0].tolist() == [END]
    matcher.accept(END)
    assert matcher.done
    with pytest.raises(HalkaError, match="breaks the constraint"):
        matcher.accept(a)


def test_every_end_token_ends_and_a_narrow_head_is_filled():
    other = TOKENIZER.pad_token_id
    matcher = Constraints(TOKENIZER, frozenset([END, other])).matcher(Constraint(regex=""))
    assert matcher.mask(WIDTH).nonzero()[:, 0].tolist() == sorted([END, other])
    assert matcher.mask(5).shape == (5,)


def test_two_matchers_follow_their_own_texts():
    one, other = (CONSTRAINTS.matcher(JSON_OBJECT) for _ in range(2))
    (brace,) = TOKENIZER.convert_tokens_to_ids(["{"])
    one.accept(brace)
    assert not one.mask(WIDTH)[brace]
    assert other.mask(WIDTH)[brace]


def test_a_token_that_breaks_the_constraint_is_named():
    with pytest.raises(HalkaError, match="token 9 breaks the constraint: ") as error:
        CONSTRAINTS.matcher(JSON_OBJECT).accept(9)
    assert "\n" not in str(error.value)


def test_spaces_of_sentencepiece_are_spaces():
    tokenizer = sentencepiece_tokenizer()
    matcher = Constraints(tokenizer, frozenset([tokenizer.eos_token_id])).matcher(Constraint(regex="The capital 你"))
    for token in tokenizer("The capital 你", add_special_tokens=False)["input_ids"][1:]:
        assert matcher.mask(len(tokenizer))[token]
        matcher.accept(token)
    assert matcher.done


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "give one of the two"),
        ({"schema": {}, "regex": "a"}, "give one of the two"),
        ({"schema": []}, "JSON Schema as a dict"),
        ({"regex": 3}, "it is a text"),
    ],
)
def test_a_constraint_is_one_thing(fields, why):
    with pytest.raises(HalkaError, match=why):
        Constraint(**fields)


def test_tokens_that_are_added_later_are_read():
    tokenizer = chatml_tokenizer()
    constraints, added = Constraints(tokenizer, frozenset([END])), len(tokenizer)
    assert not constraints.matcher(Constraint(regex="zzz")).mask(added + 1)[added]
    tokenizer.add_tokens(["zzz"])
    assert constraints.matcher(Constraint(regex="zzz")).mask(added + 1)[added]


def test_a_constraint_is_compiled_once_for_texts_that_go_their_own_ways(monkeypatch):
    compiled = list[str]()

    class Counting:
        grammar_from_regex = llguidance.LLMatcher.grammar_from_regex
        grammar_from_json_schema = llguidance.LLMatcher.grammar_from_json_schema
        validate_grammar_with_warnings = llguidance.LLMatcher.validate_grammar_with_warnings

        def __new__(cls, vocabulary, grammar, **options):
            compiled.append(grammar)
            return whole(vocabulary, grammar, **options)

    whole = llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", Counting)
    constraints = Constraints(TOKENIZER, frozenset([END]))
    ahead = constraints.matcher(Constraint(regex="ab+"))
    allowed = ahead.mask(len(TOKENIZER))
    ahead.accept(int(allowed.nonzero()[0]))
    behind = constraints.matcher(Constraint(regex="ab+"))
    assert behind.mask(len(TOKENIZER)).equal(allowed)
    assert not ahead.mask(len(TOKENIZER)).equal(allowed)
    assert len(compiled) == 1
    constraints.matcher(Constraint(schema={"properties": {"a": {}, "b": {}}}))
    constraints.matcher(Constraint(schema={"properties": {"b": {}, "a": {}}}))  # in this order
    assert len({*compiled}) == len(compiled) == 3


def test_what_constraints_need_is_named():
    with pytest.raises(HalkaError, match="needs an end token"):
        Constraints(TOKENIZER, frozenset()).matcher(JSON_OBJECT)
    with pytest.raises(HalkaError, match="needs a fast tokenizer, and object is none"):
        Constraints(object(), frozenset([END])).matcher(JSON_OBJECT)


@pytest.mark.slow
def test_smollm2():
    _, tokenizer = load_base("smollm2-135m", device="cpu")
    matcher = Constraints(tokenizer, frozenset([tokenizer.eos_token_id])).matcher(Constraint(schema=PERSON))
    for token in tokenizer('{"name": "Ünal 😀", "age": 31}', add_special_tokens=False)["input_ids"]:
        assert matcher.mask(len(tokenizer))[token]
        matcher.accept(token)
    assert matcher.done


@pytest.mark.parametrize(
    "constraint", [Constraint(schema={"enum": ["Paris", "Dhaka"]}), Constraint(regex="yes, but no")]
)
def test_a_text_that_is_complete_with_its_last_token_has_stopped(constraint):
    model = halka.adapt(tiny("llama", vocab_size=len(TOKENIZER)), TOKENIZER)

    def answer(tokens: int):
        (answer,) = engine.submit(Request([5, 6, 7], constraint=constraint, stopping=Stopping(tokens)))
        run(engine, answer)
        return answer

    with Engine(model, ends=frozenset([END])) as engine:
        whole = answer(60)
        assert whole.finish == "stop"
        short, exact = answer(len(whole.tokens) - 1), answer(len(whole.tokens))
    assert (exact.finish, exact.text, exact.tokens) == ("stop", whole.text, whole.tokens)
    assert (short.finish, short.tokens) == ("length", whole.tokens[:-1])
