"""Answers in batches are the answers alone, whatever their length; scores and perplexity are what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerFast

import halka
from classifiers import LABELS, TEXTS, classifier
from contract import disturb, weights_of
from halka import AdapterPool, AdapterStore
from halka.core import AdaptedModel
from halka.data.examples import Example, Message
from halka.data.tokens import encode, encode_prompt
from halka.evaluation.evaluating import evaluate, perplexity
from halka.evaluation.generation import AdapterNames, iter_answers
from halka.evaluation.metrics import score
from halka.util.errors import HalkaError
from tiny import tiny
from tokenizers_for_tests import chatml_tokenizer, gemma_tokenizer, qwen_tokenizer

QUESTIONS = [
    "What is the capital of France?",
    "Why?",
    "How do I reset my password? Open the settings and choose reset. Then follow the link.",
    "Yes. No. Perhaps?",
    "Where are the settings? Open the link.",
    "You are a helpful AI assistant. What is the link?",
    "Is 12 + 30 = 42?",
]


def asked(questions: list[str], answer: str = "Paris") -> list[Example]:
    return [
        Example((Message("user", text), Message("assistant", f"{answer} {number}")), where=f"q:{number}")
        for number, text in enumerate(questions)
    ]


EXAMPLES = asked(QUESTIONS)


def test_calls_of_tools_are_learned_answered_and_scored():
    tokenizer = qwen_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=512), tokenizer)
    model.add("a", halka.Full())
    tools = [{"name": name, "description": "Where?"} for name in ("map", "road")]
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Open {name}."},
                {"role": "assistant", "tool_calls": [{"name": name, "arguments": {"count": number, "open": True}}]},
            ],
            "tools": tools,
        }
        for number, name in enumerate(("map", "road"))
    ]
    halka.fit(model, "a", rows, {"steps": 60, "batch_size": 2, "lr": 1e-2})
    result = evaluate(model, "a", rows, ["calls_exact", "exact_match"])
    assert [score.value for score in result.scores.values()] == [1, 1]
    call = '<tool_call>\n{"name": "road", "arguments": {"count": 1, "open": true}}\n</tool_call>'
    assert result.predictions[1].prediction == call == halka.generate(model, rows, "a", max_new_tokens=120)[1]
    assert result.predictions[1].references == (call,)


def model_that_reads(*kinds: str) -> AdaptedModel:
    tokenizer = chatml_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    methods = {
        "lora": halka.LoRA(rank=4),
        "dora": halka.DoRA(rank=4),
        "prefix": halka.Prefix(length=4),
        "prompt": halka.Prompt(length=3),
        "bottleneck": halka.Bottleneck(width=6),
        "ia3": halka.IA3(),
        "bitfit": halka.BitFit(),
        "full": halka.Full(),
    }
    for kind in kinds:
        model.add(kind, methods[kind])
        disturb(model, kind, by={"full": 0.05, "ia3": 1.0}.get(kind, 0.2))
    return model


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


BY_GENERATE = {"num_beams": 1}  # an option that the engine has not


def test_every_example_is_answered_once():
    made = [index for index, _ in iter_answers(model_that_reads(), None, EXAMPLES, max_new_tokens=3, batch_size=2)]
    assert sorted(made) == list(range(len(EXAMPLES)))


def test_batches_hold_prompts_of_like_length_and_no_more_rows_than_they_may(monkeypatch):
    model, shapes = model_that_reads(), []
    own = model.base.generate

    def watched(input_ids, attention_mask, **options):
        shapes.append((tuple(input_ids.shape), attention_mask.sum(1).tolist()))
        assert all(row[-1] == 1 for row in attention_mask)  # padded on the left
        return own(input_ids=input_ids, attention_mask=attention_mask, **options)

    monkeypatch.setattr(model.base, "generate", watched)
    list(iter_answers(model, None, EXAMPLES, max_new_tokens=1, batch_size=3, **BY_GENERATE))
    lengths = sorted(len(encode_prompt(example, model.tokenizer)) for example in EXAMPLES)
    assert [each for _, row in shapes for each in row] == lengths
    assert [shape for shape, _ in shapes] == [(3, lengths[2]), (3, lengths[5]), (1, lengths[6])]


@pytest.mark.parametrize("kind", [None, "lora", "prefix", "prompt"])
def test_an_answer_in_a_batch_is_the_answer_alone(kind):
    model = model_that_reads("lora", "prefix", "prompt")
    alone = dict(iter_answers(model, kind, EXAMPLES, max_new_tokens=8, batch_size=1))
    assert len(set(alone.values())) > 3
    assert dict(iter_answers(model, kind, EXAMPLES, max_new_tokens=8, batch_size=4)) == alone
    assert dict(iter_answers(model, kind, EXAMPLES, max_new_tokens=8)) == alone
    if kind is not None:
        assert dict(iter_answers(model, None, EXAMPLES, max_new_tokens=8)) != alone
    for index, text in alone.items():
        prompt = encode_prompt(EXAMPLES[index], model.tokenizer)
        with model.use(kind):
            made = model.base.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :]
        assert text == model.tokenizer.decode(made, skip_special_tokens=True).strip()


class Script(LogitsProcessor):
    """Row i says a word as often as `counts` has it for a prompt of its length, and then the end of the turn."""

    def __init__(self, word: int, end: int, counts: dict[int, int], fillers: tuple[int, ...] = (0,)):
        self.word, self.end, self.counts, self.fillers, self.start = word, end, counts, torch.tensor(fillers), 0

    def __call__(self, input_ids, scores):
        self.start = self.start or input_ids.shape[1]
        said = input_ids.shape[1] - self.start
        scores = torch.full_like(scores, -math.inf)
        for row, ids in enumerate(input_ids):
            length = int((~torch.isin(ids[: self.start], self.fillers)).sum())
            scores[row, self.word if said < self.counts[length] else self.end] = 0
        return scores


def test_an_answer_ends_where_its_turn_ends():
    """Also one that ends at once, and one that has no room to end."""
    model = model_that_reads()
    tokenizer = model.tokenizer
    word, end = tokenizer.encode("Paris", add_special_tokens=False)[0], tokenizer.eos_token_id
    lengths = [len(encode_prompt(example, tokenizer)) for example in EXAMPLES]
    assert len(set(lengths)) == len(lengths)
    counts = {length: index for index, length in enumerate(lengths)}
    script = LogitsProcessorList([Script(word, end, counts)])
    made = dict(iter_answers(model, None, EXAMPLES, max_new_tokens=5, logits_processor=script))
    said = tokenizer.decode([word])
    assert made == {index: (said * min(index, 5)).strip() for index in range(len(EXAMPLES))}


def test_what_fills_up_an_answer_that_is_over_is_not_part_of_it():
    """With a tokenizer like GPT-2's: no padding token, and "!" as token 0."""
    vocabulary = {word: index for index, word in enumerate(["!", "what", "<end>", "is", "it", "so"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="what"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    base = tiny(vocab_size=len(vocabulary), pad_token_id=None)
    model = halka.adapt(base, tokenizer)
    script = LogitsProcessorList([Script(vocabulary["so"], vocabulary["<end>"], {2: 1, 3: 4}, (0, 2))])
    examples = asked(["what it", "what is it"])
    assert dict(iter_answers(model, None, examples, max_new_tokens=6, logits_processor=script)) == {
        0: "so",
        1: "so so so so",
    }


def test_options_go_to_the_base():
    model = model_that_reads()
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(dict(iter_answers(model, None, EXAMPLES, max_new_tokens=8, do_sample=True, temperature=5.0)))
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_a_prompt_without_room_for_its_answer_is_refused_by_its_place(architecture):
    tokenizer = chatml_tokenizer()
    longest = max(len(encode_prompt(example, tokenizer)) for example in EXAMPLES)
    positions = longest + 6
    model = halka.adapt(tiny(architecture, vocab_size=len(tokenizer), max_position_embeddings=positions), tokenizer)
    model.add("prefix", halka.Prefix(length=4))
    assert len(list(iter_answers(model, None, EXAMPLES, max_new_tokens=6))) == len(EXAMPLES)
    with pytest.raises(
        ValueError, match=rf"q:\d: a prompt of {longest} tokens .* do not fit the {longest + 2} positions"
    ):
        list(iter_answers(model, "prefix", EXAMPLES, max_new_tokens=6))
    assert math.isfinite(perplexity(model, "prefix", " ".join(QUESTIONS * 4)))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["engine", "generate"])
def test_an_answer_may_be_as_long_as_its_prompt_leaves_room_for(options):
    tokenizer = chatml_tokenizer()
    lengths = [len(encode_prompt(example, tokenizer)) for example in EXAMPLES]
    positions = max(lengths) + 2
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=positions), tokenizer)
    most = [min(6, positions - length) for length in lengths]
    assert {2, 6} <= {*most}
    alone = [
        dict(iter_answers(model, None, [example], max_new_tokens=new, **options))[0]
        for example, new in zip(EXAMPLES, most, strict=True)
    ]
    assert dict(iter_answers(model, None, EXAMPLES, max_new_tokens=6, fit=True, **options)) == dict(enumerate(alone))
    short = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=max(lengths)), tokenizer)
    with pytest.raises(
        ValueError, match=f"{max(lengths)} tokens and 1 new ones do not fit the {max(lengths)} positions.*: shorten it$"
    ):
        list(iter_answers(short, None, EXAMPLES, max_new_tokens=6, fit=True, **options))


def test_an_example_with_a_long_prompt_is_scored_beside_one_with_a_long_answer():
    """Which together the context does not hold."""
    tokenizer, text = chatml_tokenizer(), " ".join(QUESTIONS)
    pairs = [(text, "Paris"), ("Hi", text)]
    examples = [Example((Message("user", prompt), Message("assistant", answer))) for prompt, answer in pairs]
    longest = max(len(encode(example, tokenizer)) for example in examples)
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=longest + 1), tokenizer)
    assert len(evaluate(model, None, examples).predictions) == 2


# ── an adapter for each example ─────────────────────────────────────────────────────────────────────────────────────

MIXED = ("lora", None, "prefix", "full", "prompt", "bottleneck", "ia3", "lora", "full", None, "dora", "bitfit")
MANY = asked([f"{text} {more}" for more in ("Now.", "Please.") for text in QUESTIONS][: len(MIXED)])


def alone(model: AdaptedModel, names, examples=MANY, **options) -> dict[int, str]:
    """Each example's answer with its own adapter in a batch of one."""
    return {
        index: next(iter_answers(model, name, [example], **options))[1]
        for index, (name, example) in enumerate(zip(names, examples, strict=True))
    }


def test_answers_with_an_adapter_each_are_those_of_that_adapter_alone():
    model = model_that_reads(*{name for name in MIXED if name})
    expected = alone(model, MIXED, max_new_tokens=8)
    bare = alone(model, [None] * len(MIXED), max_new_tokens=8)
    assert [expected[index] != bare[index] for index in range(len(MIXED))] == [name is not None for name in MIXED]
    for size in (1, 3, 32):
        assert dict(iter_answers(model, MIXED, MANY, max_new_tokens=8, batch_size=size)) == expected


def test_beams_with_an_adapter_each_are_those_of_that_adapter_alone():
    model = model_that_reads(*{name for name in MIXED if name})
    expected = alone(model, MIXED, max_new_tokens=6, num_beams=3)
    assert expected != alone(model, MIXED, max_new_tokens=6)
    assert dict(iter_answers(model, MIXED, MANY, max_new_tokens=6, num_beams=3)) == expected


def test_draws_with_an_adapter_each_are_repeatable():
    model = model_that_reads("lora", "prefix")
    names, made = ["lora", None, "prefix", "prefix", None, "lora", "lora"], []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        made.append(dict(iter_answers(model, names, EXAMPLES, max_new_tokens=8, do_sample=True, temperature=5.0)))
    assert made[0] == made[1] != made[2]


class Recorded(LogitsProcessor):
    """The scores that tokens are drawn by."""

    def __init__(self) -> None:
        self.scores: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores.append(scores.clone())
        return scores


def test_each_row_draws_by_its_own_adapters_scores():
    names = ["lora", None, "prefix", "prompt", "bottleneck", "ia3", "dora"]
    model = model_that_reads(*filter(None, names))

    def scores(using, examples) -> torch.Tensor:
        seen = Recorded()
        options = {"max_new_tokens": 1, "do_sample": True, "logits_processor": LogitsProcessorList([seen])}
        order = [index for index, _ in iter_answers(model, using, examples, **options)]
        return seen.scores[0][torch.tensor(order).argsort()]

    together = scores(names, EXAMPLES)
    for row, (name, example) in enumerate(zip(names, EXAMPLES, strict=True)):
        alone = scores(name, [example])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(scores(None, EXAMPLES)[0], together[0])


def test_batches_are_as_large_as_the_pool_allows(tmp_path):
    kinds = ["lora", "ia3", "bottleneck", "prefix"]
    made, store = model_that_reads(*kinds), AdapterStore(tmp_path)
    names = [kinds[i % 4] for i in range(len(EXAMPLES))]
    expected = dict(iter_answers(made, names, EXAMPLES, max_new_tokens=4))
    for kind in kinds:
        store.save(made, kind)
    sizes = {kind: 4 * made.adapter(kind).count() for kind in kinds}
    model = halka.adapt(made.base, made.tokenizer)
    pool = AdapterPool(model, store, budget=max(sizes["lora"] + sizes["ia3"], *sizes.values()))
    assert not pool.fits(kinds)
    assert dict(iter_answers(model, names, EXAMPLES, max_new_tokens=4)) == expected
    with pytest.raises(ValueError, match="no adapter 'nobody'"):
        next(iter_answers(model, [*names[:-1], "nobody"], EXAMPLES, max_new_tokens=4))


def batches_of(model: AdaptedModel, names, examples, monkeypatch, **options) -> list[tuple[str | None, ...]]:
    """Which adapters each batch used."""
    own, used = model.base.generate, []

    def watched(**given):
        used.append(model.active)
        return own(**given)

    monkeypatch.setattr(model.base, "generate", watched)
    assert len(dict(iter_answers(model, names, examples, **options, **BY_GENERATE))) == len(examples)
    return used


def test_a_full_copy_has_batches_of_its_own_and_all_others_share(monkeypatch):
    model = model_that_reads(*{name for name in MIXED if name})
    used = batches_of(model, MIXED, MANY, monkeypatch, max_new_tokens=1, batch_size=5)
    assert ("full",) in used
    shared = [names for names in used if "full" not in names]
    assert [len(names) for names in shared] == [5, 5]
    assert sorted(map(str, (name for names in shared for name in names))) == sorted(
        str(name) for name in MIXED if name != "full"
    )


def test_a_batch_of_one_adapter_names_it_once(monkeypatch):
    model = model_that_reads("lora")
    assert batches_of(model, ["lora"] * 7, EXAMPLES, monkeypatch, max_new_tokens=1) == [("lora",)]
    assert batches_of(model, [None] * 7, EXAMPLES, monkeypatch, max_new_tokens=1) == [(None,)]


def test_a_long_prompt_does_not_share_a_batch_with_virtual_tokens_that_would_not_fit_beside_it():
    tokenizer = chatml_tokenizer()
    lengths = [len(encode_prompt(example, tokenizer)) for example in EXAMPLES]
    longest = lengths.index(max(lengths))
    model = halka.adapt(tiny(vocab_size=len(tokenizer), max_position_embeddings=max(lengths) + 5), tokenizer)
    model.add("prefix", halka.Prefix(length=5))
    names = [None if index == longest else "prefix" for index in range(len(EXAMPLES))]
    assert sorted(lengths)[-2] + 5 <= max(lengths)  # the others do fit
    made = dict(iter_answers(model, names, EXAMPLES, max_new_tokens=5))
    assert made == alone(model, names, EXAMPLES, max_new_tokens=5)
    names[longest] = "prefix"
    with pytest.raises(ValueError, match=rf"q:{longest}: a prompt of .* do not fit the {max(lengths)} positions"):
        list(iter_answers(model, names, EXAMPLES, max_new_tokens=5))


def test_there_is_one_adapter_or_one_for_each_example():
    model = model_that_reads("lora")
    for names in (["lora"], [], [None] * 8):
        with pytest.raises(ValueError, match=f"{len(names)} adapters for 7 examples: give one for each"):
            next(iter_answers(model, names, EXAMPLES))
        with pytest.raises(ValueError, match=f"{len(names)} adapters for 7 examples"):
            evaluate(model, names, EXAMPLES, ["exact_match"])
    with pytest.raises(ValueError, match="no adapter 'b' here"):
        next(iter_answers(model, ["lora"] * 6 + ["b"], EXAMPLES))


def test_an_adapter_each_from_a_pool(tmp_path):
    store, source = halka.AdapterStore(tmp_path / "adapters"), model_that_reads("lora", "prefix", "ia3")
    for name in ("lora", "prefix", "ia3"):
        store.save(source, name)
    names = ["lora", None, "prefix", "ia3", "lora", "prefix", None]
    model = halka.adapt(source.base, source.tokenizer)
    halka.AdapterPool(model, store)
    made = dict(iter_answers(model, names, EXAMPLES, max_new_tokens=6, batch_size=3))
    assert made == alone(source, names, EXAMPLES, max_new_tokens=6)


@pytest.mark.parametrize("options", [{}, BY_GENERATE], ids=["engine", "generate"])
def test_answers_and_losses_know_no_dropout_whatever_mode_a_base_is_in(options):
    tokenizer = chatml_tokenizer()
    dropped = {"attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5}
    model = halka.adapt(tiny("gpt2", vocab_size=len(tokenizer), **dropped), tokenizer)
    model.add("a", halka.LoRA(rank=4, dropout=0.5))
    disturb(model, "a", by=0.2)

    def all_of_it() -> list[object]:
        answered = dict(iter_answers(model, "a", EXAMPLES, max_new_tokens=4, **options))
        return [answered, perplexity(model, "a", " ".join(QUESTIONS)), str(halka.merge_error(model, "a"))]

    expected = all_of_it()
    modules = [model.base, *model.adapter("a").parts.values()]
    for module in modules:
        module.train()
    assert all_of_it() == expected
    assert all(module.training for module in modules)


@pytest.mark.parametrize("option", ["num_return_sequences", "return_dict_in_generate"])
def test_options_that_give_no_text_a_prompt_are_refused(option):
    with pytest.raises(ValueError, match=f"{option} is not for texts"):
        halka.generate(model_that_reads(), ["Why?"], **{option: 2})


def test_a_metrics_name_alone_is_no_list():
    with pytest.raises(ValueError, match=r"metrics is the text 'exact_match': give a list .* \['exact_match'\]"):
        evaluate(model_that_reads(), None, EXAMPLES, "exact_match")


def test_metrics_may_be_a_generator():
    result = evaluate(model_that_reads(), None, EXAMPLES[:1], (name for name in ["exact_match"]))
    assert [*result.scores] == ["exact_match"]


def test_no_examples_give_no_answers():
    assert list(iter_answers(model_that_reads(), None, [])) == []


def test_generating_needs_a_tokenizer_and_a_known_adapter():
    with pytest.raises(ValueError, match=r"needs its tokenizer: `halka\.adapt\(base, tokenizer\)`"):
        next(iter_answers(halka.adapt(tiny()), None, EXAMPLES))
    with pytest.raises(ValueError, match="no adapter 'a' here"):
        next(iter_answers(model_that_reads(), "a", EXAMPLES))


def test_nothing_is_held_between_two_answers():
    """The consumer of the stream may use the model as it likes."""
    model = model_that_reads("lora", "prefix")
    alone = dict(iter_answers(model, "prefix", EXAMPLES, max_new_tokens=4, batch_size=2))
    made = {}
    for index, text in iter_answers(model, "prefix", EXAMPLES, max_new_tokens=4, batch_size=2):
        assert model.active == (None,)
        assert model.base.config._attn_implementation == "sdpa"
        assert torch.is_grad_enabled()
        made[index] = text
        with model.use("lora"):
            model.base(torch.tensor([[5, 6]]))
    assert made == alone


# ── prompts to answers ──────────────────────────────────────────────────────────────────────────────────────────────


def test_texts_conversations_and_examples_are_answered_in_their_order():
    model = model_that_reads("lora")
    answers = dict(iter_answers(model, "lora", EXAMPLES, max_new_tokens=5))
    expected = [answers[index] for index in range(len(EXAMPLES))]
    assert len({*expected}) > 1
    conversations = [[{"role": "user", "content": text}] for text in QUESTIONS]
    messages = [[Message("user", text), Message("assistant", "Paris")] for text in QUESTIONS]
    for prompts in (QUESTIONS, conversations, messages, EXAMPLES, [QUESTIONS[0], conversations[1], *EXAMPLES[2:]]):
        assert halka.generate(model, prompts, "lora", max_new_tokens=5, batch_size=3) == expected
    assert halka.generate(model, QUESTIONS, max_new_tokens=5) != expected
    assert halka.generate(model, []) == []


def test_every_prompt_may_have_an_adapter_of_its_own():
    model, names = model_that_reads("lora", "prompt"), ["lora", None, "prompt", None, "lora", "prompt", None]
    answers = dict(iter_answers(model, names, EXAMPLES, max_new_tokens=5))
    assert halka.generate(model, QUESTIONS, names, max_new_tokens=5) == [answers[i] for i in range(len(names))]
    with pytest.raises(halka.HalkaError, match="2 adapters for 7 examples"):
        halka.generate(model, QUESTIONS, ["lora", None])
    with pytest.raises(halka.UnknownAdapterError, match="nobody"):
        halka.generate(model, QUESTIONS, "nobody")


def test_a_temperature_samples_and_none_is_greedy():
    model = model_that_reads()
    greedy = halka.generate(model, QUESTIONS, max_new_tokens=8)
    for options in ({"temperature": 0}, {"temperature": 0.0, "top_p": 0.5}, {"top_k": 1}, {"do_sample": False}):
        assert halka.generate(model, QUESTIONS, max_new_tokens=8, **options) == greedy
    for options in ({"temperature": 5.0}, {"top_k": 40}):
        torch.manual_seed(0)
        sampled = halka.generate(model, QUESTIONS, max_new_tokens=8, **options)
        torch.manual_seed(0)
        assert sampled == halka.generate(model, QUESTIONS, max_new_tokens=8, **options) != greedy


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("Why?", "prompts is one text: give a list"),
        ({"prompt": "Why?"}, "prompts are of type dict: give a list"),
        (EXAMPLES[0], "prompts are of type Example: give a list"),
        (["Why?", None], r"prompts\[1\] is a NoneType: give a text, a conversation or a row"),
        (["Why?", " "], r"prompts\[1\] is empty"),
        ([{"role": "user", "content": "Why?"}], r"prompts\[0\] is one message: a conversation is a list"),
        (
            [[{"role": "user", "content": "Why?"}, {"role": "boss", "content": "!"}]],
            r"prompts\[0\]: message 2 .*'boss'",
        ),
        ([[]], r"prompts\[0\] has no message to answer"),
        ([[Message("assistant", "Paris")]], r"prompts\[0\] has no message to answer"),
    ],
)
def test_what_is_no_prompt_is_named(prompts, message):
    with pytest.raises(halka.DataError, match=message):
        halka.generate(model_that_reads(), prompts)


def test_a_classifiers_answers_have_no_number_of_tokens():
    examples = [Example((Message("user", text), Message("assistant", LABELS[0]))) for text in TEXTS]
    assert len(halka.evaluate(classifier(), None, examples, max_new_tokens=0).predictions) == len(TEXTS)


def test_a_classifier_answers_by_its_labels():
    model = classifier()
    assert {*halka.generate(model, TEXTS)} <= {*LABELS}


# ── scores ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def examples_answered_right(model: AdaptedModel, names: AdapterNames, right: set[int]) -> list[Example]:
    """The examples, of which the model answers those with these numbers right: they have its answers as references."""
    answers = dict(iter_answers(model, names, EXAMPLES, max_new_tokens=5))
    assert all(answers.values())
    return [
        Example((example.prompt[0], Message("assistant", answers[number])), where=example.where)
        if number in right
        else example
        for number, example in enumerate(EXAMPLES)
    ]


@pytest.mark.filterwarnings("ignore:.* accepted answers are longer")
def test_an_evaluation_scores_answers_against_their_own_references():
    model, progress = model_that_reads(), []
    examples = examples_answered_right(model, None, {0, 2, 4, 6})
    answers = dict(iter_answers(model, None, examples, max_new_tokens=5))
    assert len({*answers.values()}) > 3
    found = evaluate(model, None, examples, ["exact_match"], max_new_tokens=5, on_progress=progress.append, seed=3)
    assert progress == [1, 2, 3, 4, 5, 6, 7]
    assert [each.prediction for each in found.predictions] == [answers[index] for index in range(7)]
    assert [each.prompt for each in found.predictions] == QUESTIONS
    assert [each.where for each in found.predictions] == [f"q:{number}" for number in range(7)]
    assert [each.references for each in found.predictions] == [example.answers for example in examples]
    in_order = [answers[index] for index in range(7)]
    assert found.scores == score(in_order, [example.answers for example in examples], ["exact_match"], seed=3)
    assert found.scores["exact_match"].n == 7
    assert found.scores["exact_match"].value == pytest.approx(4 / 7)


def test_an_evaluation_answers_with_the_adapter_and_leaves_the_base_alone():
    model = model_that_reads("lora")
    before, settings = weights_of(model.base), model.base.generation_config.to_dict()
    expected = dict(iter_answers(model, "lora", EXAMPLES, max_new_tokens=5))
    told = []
    found = evaluate(model, "lora", EXAMPLES, ["exact_match"], max_new_tokens=5, batch_size=3, on_progress=told.append)
    assert [each.prediction for each in found.predictions] == [expected[index] for index in range(7)]
    assert told == [1, 2, 3, 4, 5, 6, 7]
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.base.named_parameters())
    assert model.base.generation_config.to_dict() == settings
    assert not model.base.training
    assert model.active == (None,)
    other = evaluate(model, None, EXAMPLES, ["exact_match"], max_new_tokens=5)
    assert other.predictions != found.predictions


@pytest.mark.filterwarnings("ignore:.* accepted answers are longer")
def test_an_evaluation_scores_each_adapter_on_its_own_examples():
    model, names = model_that_reads("lora"), ["lora", None, "lora", None, "lora", None, None]
    examples = examples_answered_right(model, names, {0, 2, 6})
    found = evaluate(model, names, examples, ["exact_match"], max_new_tokens=5, seed=3)
    assert found.scores["exact_match"].value == pytest.approx(3 / 7)
    assert {each: score["exact_match"].value for each, score in found.by_adapter.items()} == {"lora": 2 / 3, None: 0.25}
    assert found.by_adapter["lora"] == score(
        [found.predictions[index].prediction for index in (0, 2, 4)],
        [examples[index].answers for index in (0, 2, 4)],
        ["exact_match"],
        seed=3,
    )
    assert evaluate(model, "lora", examples, ["exact_match"], max_new_tokens=5).by_adapter == {}


def test_a_metric_that_says_nothing_of_an_adapters_examples_is_refused_before_the_work():
    model, asked = model_that_reads("lora"), Message("user", "Where?")
    answers = ('{"city": "Paris"}', '{"town": "Paris"}')
    examples = [Example((asked, Message("assistant", answer))) for answer in answers]
    done = []
    with pytest.raises(HalkaError, match="for adapter 'lora': json_field:city is undefined here"):
        evaluate(model, [None, "lora"], examples, ["json_field:city"], on_progress=done.append)
    assert done == []


def test_an_evaluation_answers_each_example_with_its_adapter():
    model, names = model_that_reads("lora", "prompt"), ["lora", None, "prompt", None, "lora", "prompt", None]
    found = evaluate(model, names, EXAMPLES, ["exact_match"], max_new_tokens=5)
    expected = dict(iter_answers(model, names, EXAMPLES, max_new_tokens=5))
    assert [each.prediction for each in found.predictions] == [expected[index] for index in range(7)]
    assert found.by_adapter.keys() == {"lora", None, "prompt"}


def test_other_accepted_answers_count_too():
    model, example = model_that_reads(), Example((Message("user", "Why?"), Message("assistant", "Because")))
    ((_, answer),) = iter_answers(model, None, [example], max_new_tokens=5)
    assert answer not in ("", "Because")
    for references, value in ((("Because",), 0), (("Because", answer), 1)):
        accepting = replace(example, references=references)
        found = evaluate(model, None, [accepting], ["exact_match"], max_new_tokens=5)
        assert found.scores["exact_match"].value == value


@pytest.mark.filterwarnings("ignore:.* accepted answers are longer")
def test_rows_in_memory_are_evaluated_by_metrics_that_fit_them():
    model = model_that_reads()
    texts = [{"question": "Why?", "answer": "Because"}]
    objects = [{"question": "Why?", "answer": '{"reason": 1}'}]
    assert [*halka.evaluate(model, None, texts, max_new_tokens=3).scores] == ["exact_match", "token_f1"]
    assert [*halka.evaluate(model, None, objects, max_new_tokens=3).scores] == [
        "json_exact",
        "json_field_f1",
        "json_valid",
    ]
    assert [*halka.evaluate(model, None, texts + objects, max_new_tokens=3).scores] == ["exact_match", "token_f1"]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=False)]
    assert [*halka.evaluate(classifier(), None, rows).scores] == ["accuracy", "macro_f1"]


def test_a_classifiers_labels_are_compared_letter_for_letter():
    model = classifier(labels=("c", "C", "c."))
    rows = [{"text": text, "label": "c"} for text in TEXTS]
    labels = [each.prediction for each in evaluate(model, None, rows).predictions]
    for label in ("c", "C", "c."):
        scores = evaluate(model, None, [{**row, "label": label} for row in rows]).scores
        assert scores["accuracy"].value == labels.count(label) / len(rows)
        assert scores["macro_f1"].value == pytest.approx(f1_of(labels.count(label), len(rows)))


def f1_of(hits: int, rows: int) -> float:
    return 2 * hits / (hits + rows)


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(ValueError, match="there are no examples to evaluate on"):
        evaluate(model_that_reads(), None, [], ["exact_match"])


@pytest.mark.parametrize(
    ("metric", "message"),
    [("exact", "unknown metric 'exact'"), ("json_field:intent", "not a JSON"), ("json_exact", "not a JSON")],
)
def test_a_metric_that_the_gold_answers_do_not_satisfy_is_refused_before_anything_is_generated(
    metric, message, monkeypatch
):
    model = model_that_reads()
    monkeypatch.setattr(model.base, "generate", lambda *_, **__: pytest.fail("it was generated"))
    with pytest.raises(ValueError, match=message):
        evaluate(model, None, EXAMPLES, [metric])


def test_a_negative_seed_is_refused_before_the_work():
    done = []
    with pytest.raises(HalkaError, match="seed must be a whole number of at least 0, not -1"):
        evaluate(model_that_reads(), None, EXAMPLES, ["exact_match"], seed=-1, on_progress=done.append)
    assert done == []


def test_an_example_without_an_answer_is_refused_by_its_place():
    unanswered = Example((Message("user", "Why?"),), where="test.jsonl:12")
    with pytest.raises(ValueError, match=r"test\.jsonl:12"):
        evaluate(model_that_reads(), None, [*EXAMPLES, unanswered], ["exact_match"])


# ── perplexity ──────────────────────────────────────────────────────────────────────────────────────────────────────

TEXT = " ".join(QUESTIONS)


@pytest.mark.parametrize("kind", [None, "lora", "prompt"])
@pytest.mark.parametrize("window", [7, 16, 100])
def test_perplexity_is_the_exponential_of_the_mean_loss_a_token(window, kind):
    model = model_that_reads("lora", "prompt")
    ids = model.tokenizer.encode(TEXT, add_special_tokens=False)
    assert len(ids) > 32
    if window == 7:
        ids += ids[: (1 - len(ids)) % 7]  # the last piece holds one token, which is predicted from nothing
        assert len(ids) % 7 == 1
    losses = []
    for start in range(0, len(ids), window):
        piece = torch.tensor([ids[start : start + window]])
        with torch.no_grad(), model.use(kind):
            losses.append(cross_entropy(model.base(piece).logits[0, :-1], piece[0, 1:], reduction="none"))
    expected = math.exp(float(torch.cat(losses).mean()))

    class Encoded:
        pad_token_id, bos_token_id = 0, None

        def __call__(self, text):
            return {"input_ids": []}

        def encode(self, text, add_special_tokens):
            assert (text, add_special_tokens) == (TEXT, False)
            return ids

    model.tokenizer = Encoded()
    assert perplexity(model, kind, TEXT, window=window) == pytest.approx(expected, rel=1e-4)


def test_every_window_begins_as_the_tokenizer_begins_a_text():
    tokenizer = gemma_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.bos_token_id not in ids
    losses = []
    for start in range(0, len(ids), 15):
        piece = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 15]]])
        with torch.no_grad():
            losses.append(cross_entropy(model.base(piece).logits[0, :-1], piece[0, 1:], reduction="none"))
    assert sum(map(len, losses)) == len(ids), "each token of the text carries loss"
    expected = math.exp(float(torch.cat(losses).mean()))
    assert perplexity(model, None, TEXT, window=16) == pytest.approx(expected, rel=1e-4)


def test_a_classifier_has_no_perplexity():
    with pytest.raises(ValueError, match="this base is a sequence-classification: perplexity is of causal"):
        perplexity(classifier(), None, "Some text.")


@pytest.mark.parametrize("make_tokenizer", [chatml_tokenizer, gemma_tokenizer])
def test_a_window_without_a_token_that_carries_loss_is_refused(make_tokenizer):
    tokenizer = make_tokenizer()
    model = halka.adapt(tiny(vocab_size=len(tokenizer)), tokenizer)
    for window in (-1, 0, 1):
        with pytest.raises(HalkaError, match=f"window must be at least 2 tokens, not {window}"):
            perplexity(model, None, TEXT, window=window)
    assert perplexity(model, None, TEXT, window=2) > 1


@pytest.mark.parametrize("text", ["", "."])
def test_a_text_without_two_tokens_has_no_perplexity(text):
    with pytest.raises(ValueError, match="the text is too short for a perplexity"):
        perplexity(model_that_reads(), None, text)
