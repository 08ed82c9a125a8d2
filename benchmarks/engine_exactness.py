"""Is every answer of the engine the one that its adapter gives alone? 10,000 requests in all that can go wrong at once.

    python benchmarks/engine_exactness.py             # half an hour of two cores

Tiny random decoders in fp32: a Llama with grouped heads, a Mistral and a Gemma 2 with windows of 12, a GPT-2. Their
adapters of all families are the model's own, in a store, or `put`; they are replaced under the same name, changed,
unloaded, removed, damaged. Requests of at most 500 kinds, greedy and seeded, from four tenants, with n up to 3 and
prompts that begin alike, come while others run and are cancelled at any time; the cache of keys and values holds a
fraction of what the rows need, and the memory for adapters a few of them. Every answer, finished or not, is compared
with whole passes, without any cache, of the content that it names: an answer that differs at a token whose logits are
nearer than 1e-4 to another's is listed as a tie, any other is wrong. One that failed because its adapter was changed
meanwhile is counted, not compared. Then one engine loads and unloads adapters a thousand times, and the process's
memory is read. The result goes to benchmarks/results/engine_exactness.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from side_by_side import setup
from transformers import AutoConfig, AutoModelForCausalLM

import halka
from halka.core import AdaptedModel, Method
from halka.engine.engine import Engine
from halka.engine.llama.forward import unsupported
from halka.engine.request import Answer, Request
from halka.engine.sampling import Draw, Sampling, choose, kept, uniform
from halka.engine.stopping import Stopping
from halka.engine.version import content_id
from halka.models.attention.paged import KVBlocks
from halka.storage.adapter_folder import AdapterFolder
from halka.util import machine

HERE = Path(__file__).parent
NEAR = 1e-4
VOCABULARY, END = 97, 2
TENANTS = ("", "a", "b", "c")
SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128, "initializer_range": 0.2},
    **{"bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0},
}
WINDOW = {"head_dim": 8, "sliding_window": 12}
BASES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": {**SIZES, **WINDOW},
    "gemma2": {**SIZES, **WINDOW, "query_pre_attn_scalar": 8},
    "gpt2": {
        **{"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
        **{"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0},
    },
}
FAMILIES: dict[str, Method] = {
    "lora": halka.LoRA(rank=4),
    "lora-of-all": halka.LoRA(rank=2, targets=("linear", "head", "embedding")),
    "dora": halka.DoRA(rank=2),
    "ia3": halka.IA3(),
    "bitfit": halka.BitFit(),
    "bottleneck": halka.Bottleneck(width=8),
    "prefix": halka.Prefix(length=5),
    "prompt": halka.Prompt(length=18),
    "joint": halka.Joint((halka.Prefix(length=17), halka.Bottleneck(width=4))),
    "llama-adapter": halka.LlamaAdapter(length=4),
    "full": halka.Full(),
}
OWN = ("lora", "prompt", "full")  # families that the model has itself, as `own-…`
PUT = ("lora", "prefix")  # those that are put into the engine, as `put-…`
CHANGED = "was changed or removed while"
REMOVED = "was removed before it was loaded"
EXPECTED = (CHANGED, REMOVED, "was replaced while", "holds no adapter", "changed since", "not there")
CONTENTS = 3  # that a name means in turn


class Tokenizer:
    """As much of one as the engine needs: a token's text is its number."""

    eos_token_id, chat_template = END, None
    added_tokens_decoder: Mapping[int, Any] = {}

    def __len__(self) -> int:
        return 100

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(number)

    def decode(self, numbers: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kinds", type=int, default=500)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="bases at a time")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"setup": setup("halka", "torch", "transformers"), "answers": {}}
    with tempfile.TemporaryDirectory() as folder:
        requests, kinds = arguments.requests // len(BASES), arguments.kinds // len(BASES)
        with ProcessPoolExecutor(arguments.processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            bases = {
                base: pool.submit(answered, base, Path(folder) / base, requests, kinds, seed)
                for seed, base in enumerate(BASES, arguments.seed)
            }
            for base, counts in bases.items():
                result["answers"][base] = counts.result()
                print(base, json.dumps(counts.result()), flush=True)
        result["cycles"] = cycles(Path(folder) / "cycles", arguments.cycles)
        print(json.dumps(result["cycles"]), flush=True)
    (HERE / "results" / "engine_exactness.json").write_text(json.dumps(result, indent=1) + "\n")


# ── the adapters ────────────────────────────────────────────────────────────────────────────────────────────────────


def model_of(base: str) -> AdaptedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(base, **BASES[base])
    return halka.adapt(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), Tokenizer())


class Contents:
    """A base's adapters: `CONTENTS` different ones of each family, as folders, and in a model of their own by id."""

    def __init__(self, base: str, folder: Path):
        self.model, self.alone, self.folders = model_of(base), model_of(base), dict[tuple[str, int], Path]()
        self.families = [name for name in FAMILIES if base != "gpt2" or name != "llama-adapter"]
        for family in self.families:
            for number in range(CONTENTS):
                self.fill(self.model, "filled", family, number)
                path = halka.save(self.model, "filled", folder / "contents" / f"{family}-{number}")
                self.folders[family, number] = path
                for id in {AdapterFolder.open(path).id, content_id(self.model.adapter("filled"))}:
                    halka.load(self.alone, path, name=id)
                self.model.remove("filled")

    def fill(self, model: AdaptedModel, name: str, family: str, number: int) -> None:
        """Add one content of a family to a model."""
        adapter = model.add(name, FAMILIES[family], seed=number)
        generator = torch.Generator().manual_seed(100 * number + self.families.index(family))
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)

    def bytes_of(self, family: str) -> int:
        copies = 2 if unsupported(self.model) is None else 1  # kernels have one of their own, in fp32 here
        return copies * AdapterFolder.open(self.folders[family, 0]).memory


# ── the requests ────────────────────────────────────────────────────────────────────────────────────────────────────


def kinds_of(names: Sequence[str | None], count: int, draw: random.Random) -> list[Request]:
    """Requests that differ: prompts of up to 50 tokens, which begin alike, half of them sampled with a seed."""
    common = [[draw.randrange(3, VOCABULARY) for _ in range(40)] for _ in range(3)]
    kinds = list[Request]()
    for number in range(count):
        beginning = draw.choice(common)[: draw.randrange(41)]
        prompt = [*beginning, *(draw.randrange(3, VOCABULARY) for _ in range(draw.randrange(1, 11)))]
        sampling = Sampling()
        if draw.random() < 0.5:
            ways = ({}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05})
            sampling = Sampling(draw.choice((0.7, 1.0, 1.3)), **draw.choice(ways), seed=draw.randrange(1000))
        kinds.append(Request(prompt, names[number % len(names)], sampling, Stopping(draw.randrange(1, 13))))
    return kinds


@dataclass(eq=False)
class Asked:
    """An answer under way and its kind; `seed` of its draws."""

    answer: Answer
    kind: Request
    seed: int
    cancelled: bool = False


@dataclass
class Run:
    """Requests at an engine, and what is done to its adapters meanwhile."""

    contents: Contents
    store: halka.AdapterStore
    engine: Engine
    draw: random.Random
    asked: list[Asked] = field(default_factory=list[Asked])
    done: Counter[str] = field(default_factory=Counter[str])

    def ask(self, kind: Request) -> None:
        request = replace(kind, tenant=self.draw.choice(TENANTS))
        n = self.draw.choice((1, 1, 1, 2, 3))
        try:
            answers = self.engine.submit(request, n)
        except halka.HalkaError as error:
            self.done[f"refused: {sort_of(error)}"] += 1
            return
        seed = kind.sampling.seed or 0
        self.asked += [Asked(answer, kind, seed + number) for number, answer in enumerate(answers)]

    def cancel_one(self) -> None:
        under_way = [one for one in self.asked[-40:] if one.answer.finish is None]
        if under_way:
            one = self.draw.choice(under_way)
            one.cancelled = True
            self.engine.cancel(one.answer)
            assert one.answer.finish == "cancelled"

    def change(self) -> None:
        """Do something to one of the adapters."""
        family, number = self.draw.choice(self.contents.families), self.draw.randrange(CONTENTS)
        folder = self.contents.folders[family, number]
        what = self.draw.choice(
            ("stored", "stored", "put", "put", "renumbered", "removed", "damaged", "own", "written")
        )
        self.done[what] += 1
        if what == "stored":
            self.store.add(folder, family)
        elif what == "put":
            family = self.draw.choice(PUT)
            self.engine.put(f"put-{family}", self.contents.folders[family, number])
        elif what == "renumbered":  # another content in place of the newest, under the next number
            self.store.remove(family, self.store.versions(family)[-1])
            self.store.add(folder, family)
        elif what == "removed":
            if len(versions := self.store.versions(family)) > 2:
                self.store.remove(family, versions[0])
        elif what == "damaged":
            path = self.store.get("damaged").folder / "adapter_model.safetensors"
            whole = path.read_bytes()
            path.with_suffix(".new").write_bytes(whole[: len(whole) // 2] if len(whole) % 2 else whole + b"x")
            path.with_suffix(".new").rename(path)
        elif what == "own":
            family = self.draw.choice(OWN)
            self.contents.model.remove(f"own-{family}")
            self.contents.fill(self.contents.model, f"own-{family}", family, number)
        elif what == "written":  # values by hand, and no word of it
            family = self.draw.choice(OWN)
            other = self.contents.alone.adapter(self._id_of_own(family, number)).state_dict()
            with torch.no_grad():
                for key, value in self.contents.model.adapter(f"own-{family}").state_dict().items():
                    value.copy_(other[key])

    def _id_of_own(self, family: str, number: int) -> str:
        return AdapterFolder.open(self.contents.folders[family, number]).id


def sort_of(error: BaseException) -> str:
    """What kind of error it is; an unknown one is its text."""
    text = str(error)
    for sort in EXPECTED:
        if sort in text:
            return sort
    if isinstance(error, halka.HalkaError) and "is damaged" in text:
        return "damaged"
    return "removed" if isinstance(error, FileNotFoundError) else f"{type(error).__name__}: {text}"


def answered(base: str, folder: Path, count: int, kinds: int, seed: int) -> dict[str, Any]:
    """So many requests of so many kinds at one base, by engines of several sizes."""
    began = time.perf_counter()
    draw, contents = random.Random(seed), Contents(base, folder)
    store = halka.AdapterStore(folder / "store")
    for family in contents.families:
        store.add(contents.folders[family, 0], family)
        store.add(contents.folders[family, 1], family)
    store.add(contents.folders["lora", 2], "damaged")
    for family in OWN:
        contents.fill(contents.model, f"own-{family}", family, 0)
    names = [None, *contents.families, *(f"own-{name}" for name in OWN), *(f"put-{name}" for name in PUT)]
    all_kinds = kinds_of([*names, *names, "damaged", "missing"], kinds, draw)
    check = Check(contents.alone)
    adapters = contents.bytes_of("full") + 2 * contents.bytes_of("joint")
    most, done, forward = Counter[str](), Counter[str](), ""
    for rows, blocks in ((8, 24), (3, 11), (16, 40)):
        base_model: Any = contents.model.base
        reader: Any = next(target.module for target in contents.model.targets if target.role == "memory")
        memory = blocks * KVBlocks.bytes_of(reader.stack.shape, base_model.dtype)
        sizes = {"rows": rows, "memory": memory, "adapter_memory": adapters, "prefill": 48, "prefill_beside": 12}
        with Engine(contents.model, store, **sizes) as engine:
            forward = type(engine._forward).__name__
            for family in PUT:
                engine.put(f"put-{family}", contents.folders[family, 0])
            run = Run(contents, store, engine, draw)
            for _ in steps_of(run, all_kinds, -(-count // 3)):
                engine.step()
                assert engine.steps < 100 * count, "no end"
            assert engine.cache.room == engine.cache.size, "blocks have leaked"
            most += Counter(
                {
                    "steps": engine.steps,
                    "preempted": engine.schedule.preempted,
                    "loads": engine.adapters.residents.loads,
                }
            )
        assert {*contents.model.adapters} == {f"own-{name}" for name in OWN}, "adapters have leaked"
        for one in run.asked:
            check(one)
        done += run.done
    return {
        **check.result,
        "forward": forward,
        "kinds": len(all_kinds),
        "changes": dict(done),
        **most,
        "seconds": round(time.perf_counter() - began),
    }


def steps_of(run: Run, kinds: Sequence[Request], count: int) -> Iterator[None]:
    """Ask so many requests between the engine's steps, and change and cancel some, until all are answered."""
    asked = 0
    while asked < count or run.engine.busy:
        under_way = sum(one.answer.finish is None for one in run.asked[-200:])
        while asked < count and under_way < 60 and run.draw.random() < 0.7:
            run.ask(run.draw.choice(kinds))
            asked, under_way = asked + 1, under_way + 1
        if run.draw.random() < 0.03:
            run.cancel_one()
        if run.draw.random() < 0.03:
            run.change()
        yield


# ── what is right ───────────────────────────────────────────────────────────────────────────────────────────────────


class Check:
    """Compares answers with those of whole passes, made once for each kind and content."""

    def __init__(self, alone: AdaptedModel):
        self._alone = alone
        self._answers = dict[Any, list[int]]()
        self._counts = Counter[str]()
        self._ids = set[str | None]()
        self._ties, self._wrong, self._errors = list[Any](), list[Any](), Counter[str]()

    @property
    def result(self) -> dict[str, Any]:
        return {
            "answers": self._counts.total(),
            **self._counts,
            "contents": len(self._ids),
            "single_runs": len(self._answers),
            "errors": dict(self._errors),
            "ties": self._ties,
            "wrong": self._wrong,
        }

    def __call__(self, one: Asked) -> None:
        answer = one.answer
        assert answer.finish is not None
        self._counts[answer.finish] += 1
        if answer.error is not None:
            self._errors[sort_of(answer.error)] += 1
        if answer.adapter_id is None and one.kind.adapter is not None:
            assert not answer.tokens, "an answer that does not name its adapter"
            return
        self._ids.add(answer.adapter_id)
        assert (answer.adapter_id is None) == (one.kind.adapter is None)
        expected = self._single_run(one, answer.adapter_id)
        if answer.finish in ("cancelled", "error"):
            expected = expected[: len(answer.tokens)]
        if answer.error is not None and CHANGED in str(answer.error):
            return  # it failed: what it has is of the values before, or of those after
        if answer.tokens != expected:
            gap = self._gap(one, expected)
            place = {"kind": repr(one.kind), "seed": one.seed, "id": answer.adapter_id, "gap": gap}
            (self._ties if gap < NEAR else self._wrong).append(place)

    def _single_run(self, one: Asked, id: str | None) -> list[int]:
        key = (tuple(one.kind.prompt), one.kind.adapter, one.kind.sampling, one.kind.stopping, one.seed, id)
        if key not in self._answers:
            tokens, answer = [*one.kind.prompt], list[int]()
            with torch.inference_mode(), self._alone.use(id):
                while len(answer) < one.kind.stopping.max_new_tokens and END not in answer:
                    logits = self._logits([*tokens, *answer])
                    answer += choose(logits, [Draw(one.kind.sampling, one.seed, len(answer))])
            self._answers[key] = answer
        return self._answers[key]

    def _logits(self, tokens: list[int]) -> torch.Tensor:
        base: Any = self._alone.base
        return base(input_ids=torch.tensor([tokens]), use_cache=False).logits[:, -1].float()

    def _gap(self, one: Asked, expected: list[int]) -> float:
        """How near the first token that differs was to another: by its logit, or by its place in the draw."""
        actual = one.answer.tokens
        same = next((n for n, pair in enumerate(zip(actual, expected, strict=False)) if pair[0] != pair[1]), None)
        if same is None:
            return float("inf")
        with torch.inference_mode(), self._alone.use(one.answer.adapter_id):
            logits = self._logits([*one.kind.prompt, *actual[:same]])[0]
        if one.kind.sampling.greedy:
            return float((logits[expected[same]] - logits[actual[same]]).abs())
        gaps = [abs(sum_ - uniform(one.seed, same)) for sum_ in kept(logits.numpy(), one.kind.sampling)[1].cumsum()]
        return float(min(gaps))


# ── memory ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def cycles(folder: Path, count: int, warm_up: int = 200) -> dict[str, Any]:
    """Load and unload adapters one after another; the process's bytes after a warm-up, and after every 100 more."""
    contents, store = Contents("llama", folder), halka.AdapterStore(folder / "store")
    families = [name for name in contents.families if name != "full"]
    for family in families:
        store.add(contents.folders[family, 0], family)
    room = max(contents.bytes_of(family) for family in families)
    cpu, bytes, objects = torch.device("cpu"), list[int](), list[int]()
    del contents.alone
    with Engine(contents.model, store, rows=4, memory=2**20, adapter_memory=room) as engine:
        for number in range(warm_up + count):
            family = families[number % len(families)]
            if number % 10 == 0:  # another content under the same name
                store.add(contents.folders[family, number // 10 % CONTENTS], family)
                store.remove(family, store.versions(family)[0])
            (answer,) = engine.run([Request([5, 6, 7, number % 90 + 3], family, stopping=Stopping(3))])
            assert answer.error is None
            if number >= warm_up - 1 and (number + 1 - warm_up) % 100 == 0:
                bytes.append(machine.resident(cpu))
                objects.append(len(gc.get_objects()))
        loads = engine.adapters.residents.loads
    return {
        "loads": loads,
        "resident_after_warm_up": bytes[0],
        "resident_every_100": bytes[1:],
        "grew_by": round(bytes[-1] / bytes[0] - 1, 4),
        "objects_after_warm_up": objects[0],
        "objects_at_end": objects[-1],
    }


if __name__ == "__main__":
    main()
