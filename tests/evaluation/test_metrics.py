"""Metrics against values worked out by hand and against sacrebleu's and rouge-score's own; intervals that cover."""

import json
import math
import sys
from collections.abc import Callable

import numpy as np
import pytest

from halka.data.examples import as_examples
from halka.data.metric import Metric
from halka.evaluation.metrics import METRICS, default_metrics, find_metric, resampled, score
from halka.evaluation.tag_metrics import entities
from halka.util.errors import HalkaError

SAID = [
    "The cat sat on the mat.",
    "A dog barked loudly at night",
    "",
    "There is a café near the river.",
    "আমি ভাত খাই।",
]
TRUE = [
    ["The cat sat on a mat.", "A cat was sitting on the mat."],
    ["The dog barked at night.", "A dog barks loudly at night.", "Dogs bark."],
    ["Nothing was said."],
    ["A café is by the river.", "There is a café near the river."],
    ["আমি ভাত খাই।", "আমি রুটি খাই।"],
]


def value(metric, predictions, references):
    name = metric if isinstance(metric, str) else metric.name
    return score(predictions, references, [metric], resamples=20)[name].value


def of(metric, prediction, *references):
    return value(metric, [prediction], [list(references)])


# ---- each metric, by hand ----


def test_exact_match_is_letter_for_letter_but_for_outer_space_and_unicode_spelling():
    assert of("exact_match", " JL-4821\n", "JL-4821") == 1
    assert of("exact_match", "jl-4821", "JL-4821") == 0
    assert of("exact_match", "b", "a", "b") == 1
    assert of("exact_match", "পড়া", "পড\u09bcা") == 1  # the letter rra composed, and as two code points
    assert of("exact_match", "", "") == 1


def test_squad_exact_forgives_case_articles_and_punctuation():
    assert of("squad_exact", "The Eiffel Tower!", "eiffel tower") == 1
    assert of("squad_exact", "An Eiffel", "eiffel tower") == 0
    assert of("squad_exact", "ঢাকা।", "ঢাকা") == 1


def test_token_f1():
    assert of("token_f1", "the big red bus", "a red bus", "green") == pytest.approx(2 * 2 / (3 + 2))
    assert of("token_f1", "red red", "red") == pytest.approx(2 / 3)
    assert of("token_f1", "", "red") == 0
    assert of("token_f1", "the", "a") == 1  # nothing left of either
    assert of("token_f1", "আমি ভাত খাই", "আমি রুটি খাই।") == pytest.approx(2 / 3)


def test_line_accuracy_counts_lines_at_their_place():
    true = "Dear Ann,\nIssue: late\nBye"
    assert of("line_accuracy", "Dear Ann,\n\n Issue: late \nBye", true) == 1
    assert of("line_accuracy", "Dear Ann,\nIssue: lost\nBye", true) == pytest.approx(2 / 3)
    assert of("line_accuracy", "Hello\nDear Ann,\nIssue: late\nBye", true) == 0
    assert of("line_accuracy", true + "\nMore", true) == pytest.approx(3 / 4)
    assert of("line_accuracy", "", true) == 0


def test_classes():
    assert of("accuracy", " Card_Arrival. ", "card_arrival") == 1
    assert of("accuracy", "lost  CARD", "found", "lost card") == 1
    assert of("accuracy", "*", "*****") == of("accuracy", "?", "!") == 0, "marks alone are names"
    assert of("accuracy", "*", "*") == 1
    said = ["a", "a", "b", "c", "nonsense"]
    true = [["a"], ["b"], ["b"], ["a"], ["b"]]
    # a: 1 hit of 2 said, 2 true -> 1/2; b: 1 hit of 1 said, 3 true -> 1/2; c and nonsense are no classes
    assert value("accuracy", said, true) == pytest.approx(2 / 5)
    assert value("macro_f1", said, true) == pytest.approx(1 / 2)
    assert value("macro_f1", ["a", "a", "a", "x"], [["a"], ["a"], ["a"], ["b"]]) == pytest.approx(1 / 2)
    assert value("macro_f1", ["b"], [["a", "b"]]) == 1


def test_a_star_is_a_mark_only_around_a_class():
    for same in ("**A**", "*a*.", '"**A.**"', "**A", "* A"):
        assert of("accuracy", same, "A") == of("macro_f1", same, "A") == 1, same
    assert of("accuracy", "A", "A*") == of("accuracy", "A*", "A") == of("macro_f1", "A", "A*") == 0
    assert of("accuracy", "**A***", "A*") == of("accuracy", "*", "*") == of("accuracy", "**", "**") == 1


def test_joiners_are_a_matter_of_spelling():
    for name, best in (("exact_match", 1), ("token_f1", 1), ("rouge_l", 1), ("chrf", 100)):
        assert of(name, "র\u200d্যাব আছে", "র্যাব আছে") == pytest.approx(best)
    assert of("bleu", "cafe\u0301 au lait ici", "café au lait ici") == pytest.approx(100)


def test_scripts_without_spaces_are_scored_by_their_letters():
    for answer, metric in (("北京是中国的首都，人口很多。", "chrf"), ("Das ist ein Haus.", "token_f1")):
        assert default_metrics(as_examples([{"prompt": "Wo?", "completion": answer}]), None) == ("exact_match", metric)
    assert of("chrf", "北京是中国的首都，有很多人。", "北京是中国的首都，人口很多。") > 30


def test_bleu_and_chrf_are_sacrebleus():
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    most = max(map(len, TRUE))
    streams = [[refs[k] if k < len(refs) else None for refs in TRUE] for k in range(most)]
    scores = score(SAID, TRUE, ["bleu", "chrf"], resamples=20)
    assert scores["bleu"].value == pytest.approx(BLEU().corpus_score(SAID, streams).score, abs=1e-9)  # type: ignore
    assert scores["chrf"].value == pytest.approx(CHRF().corpus_score(SAID, streams).score, abs=1e-9)  # type: ignore
    assert of("bleu", SAID[3], *TRUE[3]) == pytest.approx(100)
    assert of("bleu", "", "a b c d") == of("chrf", "", "a b c d") == 0


def test_bleu_resamples_are_corpus_scores_of_the_drawn_items():
    from sacrebleu.metrics.bleu import BLEU

    seen = []
    bleu = METRICS["bleu"]

    def aggregate(sums):
        seen.append(bleu.aggregate(sums))
        return seen[-1]

    score(SAID, TRUE, [Metric("x", "", bleu.per_item, aggregate, bleu.range)], seed=3, resamples=50)
    rng = np.random.default_rng(3)
    for got, drawn in zip(seen[1], rng.integers(len(SAID), size=(50, len(SAID))), strict=True):
        streams = [[TRUE[i][k] if k < len(TRUE[i]) else None for i in drawn] for k in range(3)]
        expected = BLEU(force=True).corpus_score([SAID[i] for i in drawn], streams).score  # type: ignore
        assert got == pytest.approx(expected, abs=1e-9)


def test_rouge_l_is_rouge_scores_and_reads_other_scripts():
    from rouge_score.rouge_scorer import RougeScorer

    own = RougeScorer(["rougeL"])
    for said, true in zip(SAID[:3], TRUE[:3], strict=True):
        assert of("rouge_l", said, *true) == pytest.approx(own.score_multi(true, said)["rougeL"].fmeasure)
    assert of("rouge_l", "the cat ran", "the big cat ran off") == pytest.approx(2 * 3 / (3 + 5))
    assert of("rouge_l", "আমি ভাত খাই", "আমি রুটি খাই") == pytest.approx(2 / 3)


TRUE_JSON = '{"intent": "PlayMusic", "slots": {"artist": "Runa", "year": 1974, "live": true, "tags": ["x", "y"]}}'


def test_json_valid_wants_the_whole_answer_to_be_json():
    for text in ("{}", " [1] \n", TRUE_JSON):
        assert of("json_valid", text, "{}") == 1
    bad = [
        "",
        "5",
        '"text"',
        "{} and more",
        "{'a': 1}",
        '{"a": NaN}',
        "[Infinity]",
        '{"a": 2, "a": 1}',
        '[{"a": {"\u09df": 2, "\u09af\u09bc": 1}}]',
        "[" * 100_000,
        "[" + "9" * 9999 + "]",
    ]
    for text in bad:
        assert of("json_valid", text, "{}") == 0, text[:20]


def test_json_exact():
    same = '{"slots":{"year":1974.0,"artist":"Runa","tags":["x","y"],"live":true},"intent":"PlayMusic"}'
    assert of("json_exact", same, TRUE_JSON) == of("json_exact", same, "{}", TRUE_JSON) == 1
    for change in [("1974.0", '"1974"'), ("true", "1"), ('"x","y"', '"y","x"'), ("Runa", "runa")]:
        assert of("json_exact", same.replace(*change), TRUE_JSON) == 0, change
    assert of("json_exact", "Sure: " + TRUE_JSON, TRUE_JSON) == 0
    for metric in ("json_exact", "json_field_f1", "json_field:a"):
        assert of(metric, '{"a": 2, "a": 1}', '{"a": 1}') == 0, metric
    assert of("json_exact", '{"a": "\\u09dc"}', '{"a": "ড\u09bc"}') == 1


def test_the_right_tools_are_called_or_none():
    paris = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
    same = 'I ask. {"name": "weather", "parameters": {"days": 2.0, "city": "Paris"}}'
    assert of("calls_exact", same, paris) == of("calls_exact", paris, "No.", paris) == 1
    twice = same.replace('"days"', '"days": 3, "days"')
    within = json.dumps({"name": "weather", "arguments": '{"city": "Rome", "city": "Paris", "days": 2}'})
    others = (same.replace("2.0", '"2"'), same.replace("weather", "clock"), paris + paris, "Paris", "")
    for other in (*others, twice, within):
        assert of("calls_exact", other, paris) == 0, other
    assert value("calls_exact", [same, "Hello.", paris], [[paris], ["Good day!"], ["Good day!"]]) == pytest.approx(
        2 / 3
    )
    clock = '{"name": "clock", "arguments": {}}'
    assert of("calls_exact", f"{clock}\n{paris}", f"{paris}\n{clock}") == 1, "they are made side by side"
    for depth in (300, 600, 5000):  # the second is deeper than could once be compared, the last than can be read
        nested = f'{{"name": "weather", "arguments": {"[" * depth}{"]" * depth}}}'
        assert of("calls_exact", nested, paris) == 0
    assert of("calls_exact", f"{paris}\n{paris}", paris) == of("calls_exact", paris, f"{paris}\n{clock}") == 0
    nested = '{"type": "function", "type": "function", "function": {"name": "weather", "arguments": {}}}'
    assert of("calls_exact", nested, '{"name": "weather", "arguments": {}}') == 0
    with pytest.raises(HalkaError, match="a call of the reference has a key twice"):
        of("calls_exact", "Hello.", twice)
    with pytest.raises(HalkaError, match="calls_exact is undefined here: share of answers that call the tools"):
        of("calls_exact", "Yes.", "Yes.")


def test_json_fields():
    said = '{"intent": "PlayMusic", "slots": {"artist": "Runa", "year": 1975, "tags": ["x"], "city": "Dhaka"}}'
    # the reference has 6 leaves, the answer 5; in common: intent, artist, tags/0
    assert of("json_field_f1", said, TRUE_JSON) == pytest.approx(2 * 3 / (6 + 5))
    assert of("json_field_accuracy", said, TRUE_JSON) == pytest.approx(3 / 6)
    assert of("json_field_f1:slots", said, TRUE_JSON) == pytest.approx(2 * 2 / (5 + 4))
    assert of("json_field:intent", said, TRUE_JSON) == of("json_field:slots.artist", said, TRUE_JSON) == 1
    assert of("json_field:slots.year", said, TRUE_JSON) == of("json_field:intent", "{", TRUE_JSON) == 0
    assert of("json_field_f1", "nonsense", TRUE_JSON) == 0
    assert of("json_field_f1", "nonsense", "{}") == of("json_field_f1", '{"a": 1}', "{}") == 0
    assert of("json_field_f1", "{ }", "{}") == 1
    assert of("json_field_f1:slots", '{"intent": "x", "slots": {}}', '{"intent": "x", "slots": {}}') == 1
    for metric in ("json_field:slot", "json_field_f1:slot"):  # which no reference has, such as a misspelt one
        with pytest.raises(HalkaError, match=f"{metric} is undefined here"):
            of(metric, said, TRUE_JSON)
    for metric in ("json_field:\u09af\u09bc", "json_field:\u09df", "json_field_f1:\u09df"):  # one letter, spelled twice
        assert [of(metric, text, '{"\u09df": 1}') for text in ('{"\u09af\u09bc": 1}', "{}")] == [1, 0], metric
    # micro: hits, said and true are summed over the items first
    micro = value("json_field_f1", ['{"a":1}', '{"a":1,"b":2,"c":3}'], [['{"a":2}'], ['{"a":1,"b":2,"c":4}']])
    assert micro == pytest.approx(2 * 2 / (4 + 4))
    # a field is judged on the items whose reference has it
    assert value("json_field:b", ['{"a":1}', '{"b":2}'], [['{"a":1}'], ['{"b":2}']]) == 1


# ---- names and errors ----


def test_every_metric_says_what_it_is_and_gives_a_perfect_answer_its_best():
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.meaning
        best = metric.range[1] if metric.higher_is_better else metric.range[0]
        true = '{"name": "PlayMusic", "arguments": {}}' if name == "calls_exact" else TRUE_JSON
        assert of(name, true, true) == pytest.approx(best), name
        assert metric.range[0] <= of(name, "", true) < best, name


def test_unknown_names_give_the_choices():
    with pytest.raises(ValueError, match=r"'exact_mach' \(did you mean 'exact_match'\?\).*json_field:<path>"):
        find_metric("exact_mach")
    for name in ("", "json_field:", "bleu:4"):
        with pytest.raises(ValueError, match="unknown metric"):
            find_metric(name)
    mine = Metric.mean("length", "mean length", lambda said, _: len(said), range=(0, math.inf))
    assert find_metric(mine) is mine
    assert value(mine, ["ab", "abcd"], [["x"], ["x"]]) == 3


def test_a_function_is_to_be_wrapped_and_one_that_fails_names_its_metric_and_item():
    with pytest.raises(HalkaError, match=r"<lambda>.* is no metric: .* Metric\.mean\(name, meaning, function\)"):
        score(["a"], [["a"]], [lambda said, true: 1])
    for function in (lambda said, true: {"1": 1}.get(said), lambda said, true: int(said)):
        with pytest.raises(HalkaError, match=r"mine, item 1: .*(NoneType|invalid literal)"):
            score(["1", "a"], [["a"], ["a"]], [Metric.mean("mine", "", function)])
    for function in (lambda said, true: {"1": 1}[said], lambda said, true: [1, 2]["1a".index(said) + 1]):
        with pytest.raises(HalkaError, match=r"mine, item 1: (KeyError|IndexError)\(.+\)"):
            score(["1", "a"], [["a"], ["a"]], [Metric.mean("mine", "", function)])
    lacking = Metric("mine", "", lambda said, true: {"right": 1}, lambda sums: sums["wrong"])
    for scored in (lambda: score(["a"], [["a"]], [lacking]), lambda: resampled(["a"], [["a"]], lacking)):
        with pytest.raises(HalkaError, match=r"mine, of the counts \['right'\]: KeyError\('wrong'\)"):
            scored()


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([], [], "no predictions"),
        (["a"], [], "1 predictions for 0"),
        (["a"], [[]], "item 0 has no reference"),
        (["a"], ["a"], "are one text"),
        (["a", float("nan")], [["a"], ["a"]], "item 1 holds nan"),
        (["a"], [[None]], "item 0 holds None"),
    ],
)
def test_what_cannot_be_scored_is_an_error(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        score(predictions, references, ["exact_match"])


def test_references_that_are_not_json_and_fields_that_no_reference_has_are_errors():
    with pytest.raises(ValueError, match="json_exact, item 0: the reference is not a JSON object"):
        of("json_exact", "{}", "not json")
    with pytest.raises(ValueError, match="json_field:intnet is undefined"):
        of("json_field:intnet", "{}", '{"intent": 1}')
    broken = Metric.mean("broken", "", lambda said, true: math.nan)
    with pytest.raises(ValueError, match="broken, item 0: counts are not finite"):
        of(broken, "a", "a")
    with pytest.raises(ValueError, match="resamples is 0"):
        score(["a"], [["a"]], ["accuracy"], resamples=0)


# ---- intervals ----


def test_intervals_cover_the_true_value():
    rng = np.random.default_rng(0)
    for p in (0.3, 0.02):
        covered = 0
        for trial in range(200):
            right = rng.random(80) < p
            s = score(["x" if r else "y" for r in right], [["x"]] * 80, ["exact_match"], seed=trial, resamples=400)
            covered += s["exact_match"].low <= p <= s["exact_match"].high
        assert covered >= 0.9 * 200


def test_an_interval_matches_the_normal_one_where_that_holds():
    right = [i % 4 == 0 for i in range(400)]
    s = score(["x" if r else "y" for r in right], [["x"]] * 400, ["exact_match"])["exact_match"]
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert s.value == 0.25
    assert s.n == 400
    assert s.low == pytest.approx(0.25 - half, abs=0.006)
    assert s.high == pytest.approx(0.25 + half, abs=0.006)


def test_all_alike_and_one_item_do_not_pretend_to_be_certain():
    none = score(["y"] * 100, [["x"]] * 100, ["exact_match"])["exact_match"]
    assert (none.value, none.low) == (0, 0)
    assert none.high == pytest.approx(0.0295, abs=1e-4)  # three in a hundred
    every = score(["x"] * 100, [["x"]] * 100, ["exact_match", "bleu"])
    assert (every["exact_match"].value, every["exact_match"].high) == (1, 1)
    assert every["exact_match"].low == pytest.approx(1 - 0.0295, abs=1e-4)
    one = score(["x"], [["x"]], ["exact_match"])["exact_match"]
    assert (one.value, one.high, one.n) == (1, 1, 1)
    assert one.low == pytest.approx(0.05)
    assert {type(end) for end in (none.low, none.high, one.low, one.high)} == {float}


@pytest.mark.parametrize(
    ("metric", "answers", "references"),
    [  # of a hundred items, the metric judges the first alone
        ("json_field:b", ['{"b": 1}', "{}"], ['{"b": 1}', '{"a": 1}']),
        ("json_field:b", ['{"b": 2}', "{}"], ['{"b": 1}', '{"a": 1}']),
        ("json_field_f1:b", ['{"b": 1}', "{}"], ['{"b": 1}', '{"a": 1}']),
        ("json_field_accuracy", ['{"b": 1}', '{"a": 1}'], ['{"b": 1}', "{}"]),
        ("tag_f1", ["B-PER O", "O O"], ["B-PER O", "O O"]),
    ],
)
def test_all_alike_is_as_certain_as_the_items_that_count(metric, answers, references):
    alone = score(answers[:1], [references[:1]], [metric])[metric]
    first, rest = answers[:1] + answers[1:] * 99, references[:1] + references[1:] * 99
    among = score(first, [[text] for text in rest], [metric])[metric]
    assert (among.value, among.low, among.high) == (alone.value, alone.low, alone.high)
    assert alone.high - alone.low == pytest.approx(0.95)


@pytest.mark.parametrize("metric", ["calls_exact", "macro_f1", "bleu", "json_field_f1", "exact_match"])
def test_all_alike_of_metrics_that_count_every_item(metric):
    call = '{"name": "weather", "arguments": {}}'
    rest = "{}" if metric == "json_field_f1" else "It is not known to me."
    among = score([call, *[rest] * 99], [[call], *[[rest]] * 99], [metric])[metric]
    top = METRICS[metric].range[1]
    assert among.value == pytest.approx(top)
    assert among.low == pytest.approx(top * 0.05 ** (1 / 100))


def test_the_interval_is_that_of_the_resampled_scores():
    whole = score(SAID, TRUE, ["bleu"], seed=3)["bleu"]
    drawn = resampled(SAID, TRUE, "bleu", seed=3)
    assert [whole.low, whole.high] == pytest.approx([*np.nanquantile(drawn, [0.025, 0.975])])
    with pytest.raises(HalkaError, match="predictions for"):
        resampled(["a"], [], "bleu")


def test_scores_repeat_and_do_not_depend_on_what_else_is_scored():
    alone = score(SAID, TRUE, ["bleu"], seed=1)["bleu"]
    beside = score(SAID, TRUE, ["chrf", "bleu", "exact_match"], seed=1)["bleu"]
    assert alone == beside
    assert alone != score(SAID, TRUE, ["bleu"], seed=2)["bleu"]
    assert alone.low <= alone.value <= alone.high
    assert score(SAID, TRUE, []) == {}


def work(call: Callable[[], object]) -> int:
    """How many lines of Python a call runs, calls and returns counted, too."""
    count, before = 0, sys.gettrace()

    def trace(*_):
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_a_thousand_resamples_of_every_metric_are_hardly_more_work_than_two():
    """Items are counted once, not in every resample, and the resamples' scores are computed together."""

    def text(intent: int, word: int) -> str:
        name, words = f"i{intent}", {"a": f"word {word}"}
        return json.dumps({"intent": name, "slots": words, "name": name, "arguments": words})  # it is a call, too

    said = [text(i % 7, i % 50) for i in range(300)]
    true = [[text(i % 6, i % 40)] for i in range(300)]
    names = [*METRICS, "json_field:intent", "json_field_f1:slots"]
    scores = score(said, true, names)  # by now all is imported
    two, thousand = (work(lambda many=many: score(said, true, names, resamples=many)) for many in (2, 1000))
    assert thousand < 1.2 * two
    same = ("json_valid", "tag_f1")  # nothing is tagged here
    assert all(s.low < s.value < s.high for name, s in scores.items() if name not in same)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [  # as seqeval reads them
        ("B-A I-A O I-B", [("A", 0, 1), ("B", 3, 3)]),
        ("I-A I-B B-B E-B I-B", [("A", 0, 0), ("B", 1, 1), ("B", 2, 3), ("B", 4, 4)]),
        ("S-A S-A", [("A", 0, 0), ("A", 1, 1)]),
        ("B-A I-A L-A U-A U-A O", [("A", 0, 2), ("A", 3, 3), ("A", 4, 4)]),
        ("B-A M-A E-A S-A", [("A", 0, 2), ("A", 3, 3)]),
        ("L M M U", [("L", 0, 0), ("M", 1, 2), ("U", 3, 3)]),
        ("PER PER O LOC-X DET NOUN", [("PER", 0, 1), ("LOC-X", 3, 3), ("DET", 4, 4), ("NOUN", 5, 5)]),
        ("B I O B", [("", 0, 1), ("", 3, 3)]),
    ],
)
def test_entities_of_every_scheme(tags, expected):
    assert list(entities(tags.split())) == expected


def test_tags_that_are_types_alone_are_told_apart():
    scores = score(["LOC O PER PER", "O PER"], [["PER O LOC LOC"], ["O PER"]], ["tag_f1", "tag_accuracy"], resamples=2)
    assert scores["tag_f1"].value == pytest.approx(1 / 3)
    assert scores["tag_accuracy"].value == pytest.approx(3 / 6)


def test_macro_f1_keeps_the_counts_of_the_references_classes_alone():
    """Each generated text could be a class of its own, and the table of all counts the square of their number."""
    metric = find_metric("macro_f1")
    names = [*metric.per_item("a text", ["yes"]), *metric.per_item("no", ["no"])]
    assert len(metric.reads(names)) == len({*names}) - 1
    golds = [["yes"], ["no"]] * 30
    answers = ["yes", "no"] * 20 + [f"text {number}" for number in range(20)]
    assert score(answers, golds, ["macro_f1"])["macro_f1"].value == pytest.approx(0.8)
