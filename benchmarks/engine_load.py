"""Halka's engine under the loads of benchmarks/engine.py: each function is one run, in a process of its own."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from side_by_side import filled

import halka
from halka.core import AdaptedModel
from halka.engine.engine import Engine
from halka.engine.request import Answer, Request
from halka.engine.stopping import Stopping
from halka.evaluation.generation import iter_answers
from halka.models.loading import load_base
from halka.storage.adapter_store import AdapterStore

BASE, NEW, ROWS = "smollm2-135m", 96, 32
LONG = 2000
"""Tokens of the long prompt."""
BESIDE = 24
"""Rows that decode beside adapters that come from disk."""
PAUSE = 0.5
"""Seconds on average from an answer to the same user's next request."""
FAMILIES = {
    "lora": halka.LoRA(rank=16),
    "bottleneck": halka.Bottleneck(),
    "prefix": halka.Prefix(),
    "prompt": halka.Prompt(),
}
NO_ENDS: frozenset[int] = frozenset()


def prompts_of(count: int, seed: int) -> list[list[int]]:
    """Prompts of 56 to 72 tokens, no two with a beginning in common."""
    draw = random.Random(seed)
    return [prompt_of(draw, 56, 72) for _ in range(count)]


def prompt_of(draw: random.Random, least: int, most: int) -> list[int]:
    return [draw.randrange(100, 40000) for _ in range(draw.randint(least, most))]


def adapted(families: dict[str, int]) -> tuple[AdaptedModel, list[str]]:
    """The base with so many adapters of each family, and their names."""
    model = halka.adapt(*load_base(BASE, device="cpu"))
    names = [f"{family}{number}" for family, count in families.items() for number in range(count)]
    for number, name in enumerate(names):
        filled(model, name, FAMILIES[name.rstrip("0123456789")], number)
    return model, names


class Clock:
    """An engine's steps, and when each token of each answer came."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.times: dict[Answer, list[float]] = {}
        self.submitted: dict[Answer, float] = {}

    def submit(self, prompt: list[int], adapter: str | None, tokens: int = NEW, tenant: str = "") -> Answer:
        (answer,) = self.engine.submit(Request(prompt, adapter, stopping=Stopping(tokens), tenant=tenant))
        self.times[answer], self.submitted[answer] = [], time.perf_counter()
        return answer

    def step(self) -> None:
        self.engine.step()
        now = time.perf_counter()
        for answer, times in self.times.items():
            if answer.error is not None:
                raise answer.error
            times += [now] * (len(answer.tokens) - len(times))

    def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self.step()

    def first(self, answer: Answer) -> float:
        """Seconds that an answer's first token took."""
        return self.times[answer][0] - self.submitted[answer]


class Sender:
    """A tenant that keeps some requests under way, of 150 to 200 tokens: as a question has with what it is about.

    Each comes some time after an answer, `pause` seconds on average, whatever is computed then: its first token takes
    what is left of a step, too.
    """

    def __init__(
        self, clock: Clock, tenant: str, under_way: int, names: list[str], tokens: tuple[int, int], pause: float
    ):
        """names: of its adapters. tokens: the fewest and the most of an answer."""
        self.answers: list[Answer] = []
        self.due = [time.perf_counter()] * under_way  # when requests come
        self._clock, self._tenant, self._names, self._tokens, self._pause = clock, tenant, names, tokens, pause
        self._draw = random.Random(tenant)
        self._under_way: list[Answer] = []

    def send(self) -> None:
        """Submit what has come by now."""
        draw, now = self._draw, time.perf_counter()
        for answer in filter(lambda answer: answer.finish is not None, [*self._under_way]):
            self._under_way.remove(answer)
            self.due.append(self._clock.times[answer][-1] + self._pause * draw.expovariate(1))
        for due in filter(lambda due: due <= now, [*self.due]):
            self.due.remove(due)
            prompt, name, tokens = prompt_of(draw, 150, 200), draw.choice(self._names), draw.randint(*self._tokens)
            answer = self._clock.submit(prompt, name, tokens, self._tenant)
            self._clock.submitted[answer] = due
            self._under_way.append(answer)
            self.answers.append(answer)


def finished(answers: list[Answer]) -> bool:
    return all(answer.finish is not None for answer in answers)


def decoding(families: dict[str, int], rows: int, batches: list[list[list[int]]], tokens: int) -> Any:
    """Of each batch of prompts, for each prompt, when each token came. Without adapters the base answers."""
    model, names = adapted(families)
    using = names or [None]
    times: list[list[list[float]]] = []
    with Engine(model, rows=rows, ends=NO_ENDS) as engine:
        for batch, new in [(batches[0], 4), *((batch, tokens) for batch in batches)]:
            clock = Clock(engine)
            answers = [clock.submit(prompt, using[row % len(using)], new) for row, prompt in enumerate(batch)]
            clock.until(lambda answers=answers: finished(answers))
            times.append([clock.times[answer] for answer in answers])
    return times[1:]


def requests(at_once: bool, tokens: int, count: int, seed: int) -> dict[str, float]:
    """Answer requests with an adapter each, all at a time or one at a time."""
    model, names = adapted({"lora": ROWS})
    prompts = prompts_of(count + 1, seed)
    with Engine(model, rows=ROWS, ends=NO_ENDS) as engine:
        clock = Clock(engine)
        warm = clock.submit(prompts.pop(), names[0], 4)
        clock.until(lambda: warm.finish is not None)
        started = time.perf_counter()
        answers: list[Answer] = []
        for prompt, name in zip(prompts, names, strict=False):
            answers.append(clock.submit(prompt, name, tokens))
            if not at_once:
                clock.until(lambda: finished(answers))
        clock.until(lambda: finished(answers))
        seconds = time.perf_counter() - started
    return {"requests_per_second": count / seconds, "tokens_per_second": count * tokens / seconds}


def long_prompt(steps: int, seed: int) -> dict[str, float]:
    """Gaps between the tokens of all rows but one, and the same while that one reads a long prompt."""
    model, names = adapted({"lora": ROWS})
    prompts = prompts_of(ROWS - 1, seed)
    draw = random.Random(seed)
    with Engine(model, rows=ROWS, ends=NO_ENDS) as engine:
        clock = Clock(engine)
        answers = [clock.submit(prompt, name, 2000) for prompt, name in zip(prompts, names, strict=False)]
        clock.until(lambda: all(answer.tokens for answer in answers))
        alone = gaps(clock, answers, steps)
        long = clock.submit([draw.randrange(100, 40000) for _ in range(LONG)], names[-1], 2)
        before = {answer: len(answer.tokens) for answer in answers}
        clock.until(lambda: bool(long.tokens))
        read = [gap for answer in answers for gap in between(clock.times[answer][before[answer] - 1 :])]
        return {**percentiles("alone", alone), **percentiles("beside_the_reading", read), "read_s": clock.first(long)}


def stored(steps: int, room: int, adapters: int, tokens: int, seed: int) -> dict[str, float]:
    """Gaps between the tokens of adapters that stay, and the same while the other ones come from disk, two at a time.

    room: the adapters that the engine's memory takes
    """
    with tempfile.TemporaryDirectory() as folder:
        store = AdapterStore(Path(folder) / "store")
        maker, names = adapted({"lora": adapters})
        for name in names:
            store.save(maker, name)
        del maker
        model, _ = adapted({})
        stay, come = names[: room - 2], names[room - 2 :]
        prompts = prompts_of(BESIDE + len(come), seed)
        with Engine(model, store, rows=BESIDE + 2, most_adapters=room, ends=NO_ENDS) as engine:
            clock = Clock(engine)
            answers = [clock.submit(prompt, stay[row % len(stay)], 2000) for row, prompt in enumerate(prompts[:BESIDE])]
            clock.until(lambda: all(answer.tokens for answer in answers))
            alone = gaps(clock, answers, steps)
            loads = engine.adapters.residents.loads
            before = {answer: len(answer.tokens) for answer in answers}
            others = [clock.submit(prompt, name, tokens) for prompt, name in zip(prompts[BESIDE:], come, strict=True)]
            clock.until(lambda: finished(others))
            beside = [gap for answer in answers for gap in between(clock.times[answer][before[answer] - 1 :])]
            loads = engine.adapters.residents.loads - loads
            alone += gaps(clock, answers, steps)  # texts have become longer meanwhile: half before, half after
        return {**percentiles("alone", alone), **percentiles("beside_the_others", beside), "loads": loads}


def tenants(under_way: int, count: int, flood: int, tokens: int, seed: int) -> dict[str, float]:
    """How long one tenant's first tokens take, alone and while another keeps a flood of requests under way.

    It keeps so many requests `under_way`, with answers of 8 to 24 tokens: `count` alone, then as many beside it.
    """
    model, names = adapted({"lora": 8})
    with Engine(model, rows=ROWS, ends=NO_ENDS) as engine:
        clock = Clock(engine)
        one = Sender(clock, f"one {seed}", under_way, names[:4], (8, 24), PAUSE)

        def firsts(*others: Sender) -> list[float]:
            begun = len(one.answers) + under_way  # those under way before had other company
            while sum(answer.finish is not None for answer in one.answers[begun:]) < count:
                for sender in (one, *others):
                    sender.send()
                if engine.busy:
                    clock.step()
                else:
                    time.sleep(max(0.0, min(one.due) - time.perf_counter()))
            return [clock.first(answer) for answer in one.answers[begun:] if answer.tokens]

        alone = firsts()
        other = Sender(clock, f"flood {seed}", flood, names[4:], (tokens, tokens), 0)
        beside = firsts(other)
    return {
        **percentiles("alone", alone),
        **percentiles("beside_the_flood", beside),
        "preempted": engine.schedule.preempted,
    }


def evaluation(task: str, way: str, adapter: str, count: int, tokens: int) -> dict[str, Any]:
    """Answer test examples with an adapter, by the engine or by transformers' `generate`."""
    from fixed_batches import HERE, instructed

    from halka.data.task import limit, load_task

    examples = limit(load_task(HERE / "tasks" / "snips_nlu.py"), train=1000, test=count)
    if task == "snips-180":
        examples = instructed(examples)
    model = halka.adapt(*load_base(BASE, device="cpu"))
    halka.load(model, adapter, name="a")
    options = {} if way == "engine" else {"num_beams": 1}  # an option that the engine has not
    answers = dict(iter_answers(model, "a", examples.test[:2], max_new_tokens=4, **options))
    started = time.perf_counter()
    answers = dict(iter_answers(model, "a", examples.test, max_new_tokens=tokens, **options))
    seconds = time.perf_counter() - started
    return {"answers_per_second": len(answers) / seconds, "answers": [answers[place] for place in sorted(answers)]}


def gaps(clock: Clock, answers: list[Answer], steps: int) -> list[float]:
    """Seconds between the tokens of all answers over the next steps."""
    before = {answer: len(answer.tokens) for answer in answers}
    for _ in range(steps):
        clock.step()
    return [gap for answer in answers for gap in between(clock.times[answer][before[answer] - 1 :])]


def between(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def percentiles(name: str, seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {f"{name}_median_s": statistics.median(seconds), f"{name}_p95_s": cuts[-1]}
