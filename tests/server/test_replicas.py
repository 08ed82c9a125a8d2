"""Replicas of the engine behind the server: clients see no difference, also where a replica dies under an answer."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import halka
from halka.engine import Constraint, Request, Sampling, Stopping
from halka.engine.logprobs import TokenLogprob
from halka.server.backends.growing import Piece
from halka.server.backends.replicas.beating import beating
from halka.server.backends.replicas.contents import Contents
from halka.server.backends.replicas.deployment import application, reason, remove
from halka.server.backends.replicas.placement import CALLS, SILENT, Placement
from halka.server.backends.replicas.plan import ReplicaPlan
from halka.server.backends.replicas.replica import Replica
from halka.server.backends.replicas.share import share_of
from halka.server.backends.replicas.wire import UNSAID, Call, EngineFailed, Reply, State
from halka.server.guards.metrics import BackendState
from halka.storage.adapter_folder import AdapterFolder
from halka.util.errors import ContextLengthError, HalkaError, OutOfMemoryError, UnknownAdapterError
from halka.util.openmp import BRIEFLY
from halka.util.own_version import PACKAGE, own_version, source_hash
from halka.util.ray_connection import RayConnection
from replicas_for_tests import Here, Parcel, gateway
from serving_for_tests import InProcess, make_store, no_white_space, settings, until
from unending_for_tests import unending

PROMPT = {"prompt": "The capital of", "max_tokens": 12}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}},
    "required": ["a"],
    "additionalProperties": False,
}
JSON = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
CHAT = {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 60, "response_format": JSON}
BODIES = {
    "greedy": {**PROMPT, "logprobs": 3},
    "several prompts": {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 6, "logprobs": 0},
    "drawn": {**PROMPT, "temperature": 1.0, "seed": 3, "n": 3, "frequency_penalty": 0.5, "logprobs": 1},
    "biased": {**PROMPT, "ignore_eos": True, "logit_bias": {"9": 50, "2": -5}},
}


@pytest.fixture(scope="module")
def served(base, stored, tmp_path_factory) -> Iterator[tuple[InProcess, InProcess, Here]]:
    """A server alone; one with two replicas that have room for two adapters each; how it asks these."""
    folder = tmp_path_factory.mktemp("replicas")
    store = shutil.copytree(stored, folder / "adapters")
    with (
        InProcess.open(base, store, folder / "alone") as alone,
        gateway(base, store, folder / "gateway", adapters_in_memory=2) as (server, channel),
    ):
        yield alone, server, channel


def ask(server: InProcess, path: str = "completions", status: int = 200, **body: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/{path}", json={"model": "lora", **body})
    assert answer.status_code == status, answer.text
    return answer.json()


class Near(float):
    """A number, equal to those that other sums may come to."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 1e-4

    __hash__ = float.__hash__


def choices(server: InProcess, path: str = "completions", **body: Any) -> list[dict[str, Any]]:
    """What the answers say, in any order: which of several equal requests is the first is not said."""
    answers = [{**choice, "index": 0} for choice in ask(server, path, **body)["choices"]]
    return sorted(map(near, answers), key=lambda answer: json.dumps(answer.get("text")))


def near(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {key: near(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [near(item) for item in answer]
    return Near(answer) if isinstance(answer, float) else answer


# ── clients see no difference ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["lora", "prefix", "bottleneck", "tiny"])
@pytest.mark.parametrize("body", BODIES)
def test_an_answer_is_the_engines(served, model, body):
    alone, server, channel = served
    before = channel.calls.total()
    expected, answer = (choices(one, **BODIES[body], model=model) for one in (alone, server))
    assert answer == expected
    assert channel.calls.total() > before


def test_schemas_and_streams_come_through(served):
    alone, server, _ = served
    body = {**CHAT, "logit_bias": {str(token): value for token, value in no_white_space(alone.service).items()}}
    expected, answer = (choices(one, "chat/completions", **body) for one in (alone, server))
    assert answer == expected
    assert json.loads(answer[0]["message"]["content"])["a"] in ("x", "yy")
    stream = server.client.post("/v1/completions", json={"model": "lora", **PROMPT, "stream": True}).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    text = "".join(event["choices"][0]["text"] for event in events)
    assert text == ask(server, **PROMPT)["choices"][0]["text"]
    assert len(events) > 1


def test_what_no_engine_answers_is_refused_in_the_same_words(served):
    unlike = {**JSON, "json_schema": {"name": "a", "schema": {"type": "array", "uniqueItems": True}}}
    for path, body in (
        ("chat/completions", {**CHAT, "response_format": unlike}),
        ("completions", {"prompt": [[5, 10**6]]}),
        ("completions", {**PROMPT, "max_tokens": 10**5, "model": "tiny"}),
    ):
        alone, server = (ask(one, path, 400, **body) for one in served[:2])
        assert server == alone


# ── adapters ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_requests_meet_their_adapter_and_replicas_keep_as_many_as_they_have_room_for(base, stored, tmp_path):
    with gateway(base, stored, tmp_path, adapters_in_memory=2) as (server, channel):
        for model in ("lora", "prefix", "bottleneck", "lora", "prefix", "bottleneck", "lora"):
            ask(server, **PROMPT, model=model)
        holds = [state.holds for state in channel.states()]
        assert sorted(map(len, holds)) == [1, 2]
        assert sum(state.loads for state in channel.states()) == len(channel.fetched) == 3
        views = server.client.get("/v1/adapters").json()["data"]
        assert [view["loaded"] for view in views] == [True, True, True]
        metrics = server.client.get("/metrics").text
        count = dict.fromkeys(("met", "missed"), 0.0)
        for line in metrics.splitlines():
            for name in count:
                if line.startswith(f"halka_replica_requests_{name}{{"):
                    count[name] += float(line.split()[-1])
        assert count == {"met": 4, "missed": 3}
        assert 'backend="replica-0"' in metrics
        assert server.client.post("/v1/adapters/lora/load").json()["loaded"]
        refused = server.client.post("/v1/adapters/lora/pin")
        assert refused.status_code == 409
        assert "nothing is pinned there" in refused.text


def test_one_replica_with_room_for_one_adapter_answers_for_all(base, stored, tmp_path):
    with gateway(base, stored, tmp_path, names=("a",), adapters_in_memory=1) as (server, channel):
        first = [choices(server, **PROMPT, model=model) for model in ("lora", "prefix", "lora", "prefix")]
        assert first[:2] == first[2:]
        (state,) = channel.states()
        assert (len(state.holds), state.loads, state.evictions) == (1, 4, 3)
        assert len([*channel.replicas["a"].contents.folder.iterdir()]) <= 2, (
            "what is evicted leaves the disk with the next"
        )


def test_a_replaced_adapter_answers_with_its_new_version_at_once(base, stored, tmp_path):
    store = shutil.copytree(stored, tmp_path / "store")
    with gateway(base, store, tmp_path / "data") as (server, _):
        before = ask(server, **PROMPT)
        shutil.copytree(store / "lora" / "1", store / "lora" / "2")
        make_store(tmp_path / "other", base, {"prefix": halka.Prefix(length=4), "lora": halka.LoRA(rank=4)})
        shutil.rmtree(store / "lora" / "2")
        shutil.copytree(tmp_path / "other" / "lora" / "1", store / "lora" / "2")
        after = ask(server, **PROMPT)
        assert after["choices"][0]["text"] != before["choices"][0]["text"]
        assert after["system_fingerprint"] == AdapterFolder.open(store / "lora" / "2").id
        assert before["system_fingerprint"] == AdapterFolder.open(store / "lora" / "1").id


def test_an_adapter_of_another_base_fails_by_its_name(served, tmp_path):
    alone, server, _ = served
    folder = alone.service.settings.store / "lora"
    shutil.copytree(folder, folder.parent / "wrong")
    card = folder.parent / "wrong" / "1" / "halka.json"
    content = json.loads(card.read_text())
    content["base"]["fingerprint"]["weights"] = "0" * 16
    card.write_text(json.dumps(content))
    expected, answer = (ask(one, status=400, **PROMPT, model="wrong")["error"] for one in (alone, server))
    assert answer["message"].startswith("wrong was made for another base, tiny: ")
    assert answer["message"].endswith(expected["message"].partition(" was made ")[2])


def test_files_of_another_content_are_refused(stored, tmp_path):
    files = {path.name: path.read_bytes() for path in (stored / "lora" / "1").iterdir()}
    contents = Contents(tmp_path)

    async def use(id: str, files: dict[str, bytes]) -> None:
        async with contents.using(id, Parcel(files)):
            assert contents.get(id).folder.is_dir()

    asyncio.run(use(AdapterFolder.open(stored / "lora" / "1").id, files))
    with pytest.raises(HalkaError, match="have another content"):
        asyncio.run(use("0" * 64, files))
    with pytest.raises(HalkaError, match=r"'x\.bin' is no file of an adapter"):
        asyncio.run(use("0" * 64, {"x.bin": b""}))
    with pytest.raises(UnknownAdapterError):
        contents.get("0" * 64)


# ── replicas come and go ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("body", BODIES)
def test_another_goes_on_with_what_a_lost_replica_has_begun(served, body, tokens):
    alone, server, channel = served
    expected = choices(alone, **BODIES[body])
    channel.next = tokens
    channel.sent.clear()
    try:
        assert choices(server, **BODIES[body]) == expected
        assert [*channel.left.values()] == [0]
        assert sum(len(written) for call in channel.sent for written in call.written) == tokens  # of all prompts
    finally:
        channel.left.clear()


def test_a_schema_is_kept_across_replicas(served):
    alone, server, channel = served
    body = {**CHAT, "logit_bias": {str(token): value for token, value in no_white_space(alone.service).items()}}
    expected = choices(alone, "chat/completions", **body)
    try:
        for tokens in (2, 3):
            channel.left.clear()
            channel.sent.clear()
            channel.next = tokens
            assert choices(server, "chat/completions", **body) == expected
            assert [len(*call.written) for call in channel.sent[1:]] == [tokens]
    finally:
        channel.left.clear()


def test_another_goes_on_with_what_a_replica_that_hangs_has(base, stored, tmp_path):
    """Before its first reply, and after it; when it says something again it is as it was."""
    with gateway(base, stored, tmp_path) as (server, channel):
        holder = server.service.holder

        def states() -> list[BackendState]:
            return [*holder.states()]

        async def answer(begun: bool) -> tuple[list[int], str]:
            """Its tokens, and who had it first, and hangs."""
            channel.next, channel.hanging = 3 if begun else None, set() if begun else {*channel.replicas}
            reading = asyncio.create_task(answered(server))
            while not channel.calls or not channel.hanging:
                await asyncio.sleep(0.001)
            (first,) = channel.hanging = {*channel.calls}
            while not holder.placement.hanging:
                await asyncio.to_thread(holder.watch.see)
            tokens = await reading
            assert [state.up for state in await asyncio.to_thread(states)].count(True) == 1
            channel.hanging = set()
            channel.left.clear()
            while holder.placement.hanging:  # a look of the watch's own may be under way
                await asyncio.to_thread(holder.watch.see)
            assert all(state.up for state in await asyncio.to_thread(states))
            return tokens, first

        expected = choices(server, prompt=[5, 6, 7], max_tokens=30, ignore_eos=True, logprobs=0)
        channel.hangs_then = True
        for begun in (True, False):
            channel.calls.clear()
            tokens, first = asyncio.run(answer(begun))
            assert server.service.model.tokenizer.decode(tokens) == expected[0]["text"]
            assert channel.calls == Counter(dict.fromkeys(channel.replicas, 1)), f"{first} was asked again"


@contextmanager
def held(*replicas: Replica) -> Iterator[None]:
    """Within the block the engines of these are in one step, which does not end."""
    gate = threading.Event()
    for replica in replicas:
        replica.beat = 0.01
        replica.engine._call(gate.wait)
    try:
        yield
    finally:
        gate.set()


REQUEST = Request([5, 6, 7], "main/lora", stopping=Stopping(30, ignore_ends=True))


async def answered(server: InProcess) -> list[int]:
    """The tokens of an answer to `REQUEST`."""
    async with aclosing(server.service.holder.follow(REQUEST)) as answers:
        return [one async for one in answers][-1].tokens


def test_under_full_load_one_that_lives_is_waited_for_and_one_that_hangs_is_not(base, stored, tmp_path):
    """Each has as many calls as it takes, and a long step: only its beats say that it is there."""

    async def go() -> list[list[int]]:
        see, seen = server.service.holder.watch.see, server.service.holder.placement.seen
        while not seen:  # else all go to the first, if they are placed before a look ends
            await asyncio.to_thread(see)
        with held(channel.replicas["a"]):
            with held(channel.replicas["b"]):
                asked = [asyncio.create_task(answered(server)) for _ in range(4)]
                async with asyncio.timeout(60):
                    while channel.open != {"a": 2, "b": 2}:
                        await asyncio.sleep(0.001)
                    for _ in range(2 * SILENT):
                        await asyncio.to_thread(see)
                        while any(one.silent for one in seen.values()):
                            await asyncio.sleep(0.001)
            while sum(one.done() for one in asked) < 2:
                await asyncio.sleep(0.001)
            assert channel.calls == {"a": 2, "b": 2}
            channel.hanging = {"a"}
            while not seen["a"].hangs:
                await asyncio.to_thread(see)
            return await asyncio.gather(*asked)

    with gateway(base, stored, tmp_path, rows=1) as (server, channel):
        channel.most = CALLS
        (first, *others) = asyncio.run(asyncio.wait_for(go(), 100))
        assert channel.calls == {"a": 2, "b": 4}
        channel.hanging = set()
        assert others == [first] * 3
        assert first == asyncio.run(answered(server))


def test_another_goes_on_where_an_engine_makes_no_step(base, stored, tmp_path):
    """Where no other is well, the request stays: perhaps the step ends."""

    async def go(others: int) -> list[int]:
        holder, tokens = server.service.holder, asyncio.create_task(answered(server))
        while channel.open.total() < 1:
            await asyncio.sleep(0.001)
        (first,) = channel.calls
        channel.replicas[first].timeout = 0.0
        while not holder.placement.hangs(first):
            await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="has been in one step for more than"):
            channel.replicas[first].check_health()
        while channel.calls.total() < 1 + others:
            await asyncio.sleep(0.001)
        for _ in range(SILENT):
            await asyncio.to_thread(holder.watch.see)
        assert [state.up for state in await asyncio.to_thread(lambda: [*holder.states()])].count(True) == others
        release.close()
        channel.replicas[first].timeout = 60.0
        while holder.placement.hanging:
            await asyncio.to_thread(holder.watch.see)
        return await tokens

    expected = None
    for names in (("a", "b"), ("a",)):
        with gateway(base, stored, tmp_path / names[-1], names) as (server, channel), ExitStack() as release:
            release.enter_context(held(*channel.replicas.values()))
            tokens = asyncio.run(asyncio.wait_for(go(len(names) - 1), 100))
            assert channel.calls == dict.fromkeys(names, 1)
            assert tokens == (expected := expected or tokens)
            assert len(tokens) == 30


def test_where_no_replica_is_left_requests_fail_with_the_way_out(served):
    _, server, channel = served
    channel.left |= dict.fromkeys(channel.replicas, 0)
    try:
        answer = server.client.post("/v1/completions", json={"model": "lora", **PROMPT})
    finally:
        channel.left.clear()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "backend_unavailable")
    assert "try again later" in answer.text
    assert answer.headers["retry-after"] == "10"
    assert ask(server, **PROMPT)


def test_who_leaves_frees_the_row(served):
    _, server, channel = served
    request = Request([5, 6, 7], "main/lora", stopping=Stopping(400, ignore_ends=True))

    async def leave() -> None:
        answers = server.service.holder.follow(request)
        await anext(answers)
        under_way.extend(text.answer for engine in engines for text in engine.schedule.running)
        await answers.aclose()

    engines, under_way = [replica.engine.engine for replica in channel.replicas.values()], []
    with unending(*engines):
        asyncio.run(leave())
        until(lambda: not any(engine.busy for engine in engines), "the row is not free")
    assert [answer.finish for answer in under_way] == ["cancelled"]


def test_another_base_or_version_is_refused_by_name(base, served, tmp_path):
    plan = ReplicaPlan.of(settings(base, None, tmp_path), served[0].service.model, threads=1)
    with pytest.raises(HalkaError, match=r"has Halka .*, and the gateway 0\.0: install one wheel on all"):
        replace(plan, halka="0.0").engine(Contents(tmp_path))
    with pytest.raises(HalkaError, match=r"has another base as .* than the gateway"):
        replace(plan, fingerprint={**plan.fingerprint, "weights": "0" * 16}).engine(Contents(tmp_path))
    with pytest.raises(HalkaError, match="cannot load the base, which every node needs: "):
        replace(plan, others={**plan.others, "base": str(tmp_path / "none")}).engine(Contents(tmp_path))


class Nodes(RayConnection):
    """A cluster of these nodes."""

    def __init__(self, *nodes: dict[str, float]):
        self.present = nodes

    def nodes(self) -> list[Any]:
        return [*self.present]


def test_a_replica_gets_a_share_of_a_node_where_its_memory_is_free(base, served, tmp_path):
    model = served[0].service.model
    four = settings(base, None, tmp_path, on="ray", replicas="2-4", adapter_memory=2, memory=1)
    share = share_of(Nodes({"CPU": 8, "memory": 64e9}), four, model)
    assert (share.gpus, share.threads, share.beside, share.gpu_memory) == (0, 2, 4, 0)
    assert 3.4e9 < share.memory < 3.6e9, "the process, adapters, keys and values"
    assert share_of(Nodes({"CPU": 8}, {"CPU": 4, "memory": 8e9}), four, model).threads == 2
    with pytest.raises(
        HalkaError, match=r"2 replicas of 2 cores, 3\.\d GB each .*: 8 cores, 6\.0 GB\): start fewer, let"
    ):
        share_of(Nodes({"CPU": 8, "memory": 6e9}), four, model)
    cards = {"CPU": 16, "GPU": 2, "memory": 64e9}
    share = share_of(Nodes({**cards, "gpu_memory": 24e9}, cards), four, model)
    assert (share.gpus, share.threads, share.beside) == (1, 8, 1)
    assert share.memory < 0.6e9 < 3.4e9 < share.gpu_memory < 3.6e9
    large = replace(four, adapter_memory=40)
    assert share_of(Nodes(cards), large, model).gpu_memory > 40e9, "what no node reports, nobody compares"
    with pytest.raises(HalkaError, match=r"1 GPU of 41\.\d GB.* each have no room .* 2 GPU of 24\.0 GB"):
        share_of(Nodes({**cards, "gpu_memory": 24e9}), large, model)


def test_openmps_variables_are_set_before_torch_is_loaded():
    """In a process of its own, where torch cannot be imported."""
    code = """
import os, sys
from halka.server.backends.replicas.serve_replica import ServeReplica
loaded, sys.modules["torch"] = "torch" in sys.modules, None
try:
    ServeReplica('{"threads": 3}')
except ImportError as error:
    print(loaded, error.name, os.environ["OMP_NUM_THREADS"], os.environ["GOMP_SPINCOUNT"])
"""
    own = {name: value for name, value in os.environ.items() if name not in BRIEFLY}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "torch", "3", BRIEFLY["GOMP_SPINCOUNT"]]


def test_the_reason_why_no_replica_starts_is_our_own_error():
    trace = "The deployment failed to start 3 times in a row.\nTraceback:\n  halka.util.errors.HalkaError: "
    failed = SimpleNamespace(message=f"{trace}node a has Halka 1\n  at the end")
    assert reason(SimpleNamespace(deployments={"engine": failed}, message="")) == "node a has Halka 1"
    assert reason(SimpleNamespace(deployments={}, message="no room\n")) == "no room"


def test_a_replica_whose_engine_has_stopped_is_asked_last_and_is_to_be_replaced(base, stored, tmp_path):
    with gateway(base, stored, tmp_path) as (server, channel):
        first = choices(server, **PROMPT)
        ((name, _),) = channel.calls.items()
        asyncio.run(channel.replicas[name].engine.aclose())
        with pytest.raises(RuntimeError, match="the engine has stopped"):
            channel.replicas[name].check_health()
        for _ in range(3):
            assert choices(server, **PROMPT) == first
        assert channel.calls[name] == 2, "one answer, and one failure"
        assert server.client.get("/readyz").status_code == 200


def test_an_engine_that_fails_again_and_again_is_to_be_replaced(served):
    _, server, channel = served
    replica = channel.replicas["a"]
    error = OutOfMemoryError("no memory")
    for _ in range(5):
        with pytest.raises(EngineFailed, match="OutOfMemoryError: no memory"):
            replica._failed(error).raise_error({})
    replica.check_health()
    for _ in range(2):
        replica._failed(RuntimeError("no memory"))
    with pytest.raises(RuntimeError, match="the engine failed 3 times"):
        replica.check_health()
    for model in ("lora", "prefix", "bottleneck", "lora"):
        ask(server, **PROMPT, model=model)
    channel.left["b"] = 0
    try:
        ask(server, **PROMPT)
    finally:
        channel.left.clear()
    replica.check_health()
    assert replica._failure is None, "an error holds what its frames had"


def test_files_that_are_lost_are_put_anew_and_cached_tokens_are_counted_once(base, stored, tmp_path):
    with (
        InProcess.open(base, stored, tmp_path / "alone") as alone,
        gateway(base, stored, tmp_path / "data", names=("a",)) as (server, channel),
    ):
        channel.lose_files = True
        for _ in range(2):
            body = {"prompt": [*range(5, 45)], "max_tokens": 4, "n": 3, "ignore_eos": True}
            usages = [ask(one, **body)["usage"] for one in (alone, server)]
            assert usages[0] == usages[1]
        assert len(channel.fetched) == 2

        def ready() -> int:
            server.service.holder.watch._looked = -math.inf
            return server.client.get("/readyz").status_code

        present = channel.replicas
        for unreachable, there, status in ((True, present, 503), (False, present, 200), (False, {}, 503)):
            channel.unreachable, channel.replicas = unreachable, there
            until(lambda status=status: ready() == status, f"it is not {status}")
        channel.replicas = present


def test_who_leaves_while_files_come_disturbs_no_other(stored, tmp_path):
    folder, contents = stored / "lora" / "1", Contents(tmp_path)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    id, other = AdapterFolder.open(folder).id, AdapterFolder.open(stored / "prefix" / "1").id

    async def use(id: str, parcel: Any) -> None:
        async with contents.using(id, parcel):
            assert contents.get(id).folder.is_dir()

    async def go() -> None:
        never, coming = asyncio.Event(), asyncio.get_running_loop().create_future()
        blocked = asyncio.create_task(use(other, never.wait()))
        first, second = (asyncio.create_task(use(id, coming)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        coming.set_result(files)
        await second
        blocked.cancel()
        await asyncio.gather(first, blocked, return_exceptions=True)

    asyncio.run(go())
    assert [path.name for path in tmp_path.iterdir()] == [id]


def test_two_states_of_a_checkout_have_versions_of_their_own(base, served, tmp_path):
    """Whatever their number says; what Python or the page's tools leave there changes nothing."""
    plan = ReplicaPlan.of(settings(base, None, tmp_path), served[0].service.model, threads=1)
    assert plan.halka == own_version() == f"{version('halka')} (source {source_hash(PACKAGE)})"
    files = {"a.py": "1", "b/c.py": "2", "b/__pycache__/c.pyc": "3", "web/node_modules/d.py": "4"}
    hashes = dict[str, str]()
    for state, changes in {"one": {}, "left": {"b/__pycache__/c.pyc": "5", "web/node_modules/d.py": "6"}}.items():
        write(tmp_path / state, files | changes)
        hashes[state] = source_hash(tmp_path / state)
    for number, changed in enumerate(({"a.py": "2"}, {"b/c.py": "1"}, {"b/d.py": ""})):
        write(tmp_path / str(number), files | changed)
        hashes[str(number)] = source_hash(tmp_path / str(number))
    assert hashes.pop("left") == hashes["one"]
    assert len({*hashes.values()}) == len(hashes) == 4


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_an_application_is_waited_for_until_it_has_ended_or_its_time_has(base, tmp_path):
    calls, states = [], [{"a"}, {"a"}, {"a"}, set()]
    serve = SimpleNamespace(
        status=lambda: SimpleNamespace(applications=states.pop(0) if len(states) > 1 else states[0]),
        delete=lambda app, _blocking: calls.append((app, _blocking)),
    )
    remove(serve, "a", 10, look=0)
    assert calls == [("a", False)]
    remove(serve, "a", 10)
    assert len(calls) == 1
    states[:] = [{"a"}]
    with pytest.raises(HalkaError, match="application a on the Ray cluster did not end within 0 s"):
        remove(serve, "a", 0, look=0)
    one, again, other = (application(settings(base, None, tmp_path / data)) for data in ("1", "1", "2"))
    assert one == again != other


# ── the parts ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_sent_is_what_is_read():
    sampling = Sampling(temperature=0.7, seed=4, bias={5: -1.0})
    stopping = Stopping(9, ("\n", "é"), frozenset({3, 4}))
    request = Request([1, 2], "a" * 64, sampling, stopping, Constraint(schema={"type": "object"}), "main", 2)
    call = Call(request, 2, False, [[1], [2, 3]])
    assert Call.of(call.json) == call
    assert Call.of(Call(Request([1])).json) == Call(Request([1]), written=[])
    piece = Piece(1, [5, 6], [TokenLogprob(5, -0.5, ((5, -0.5), (6, -1.0)))] * 2, "stop")
    for reply in (Reply("a", True), Reply(piece=piece, cached=3), Reply.failed(UnknownAdapterError("no aa")), Reply()):
        assert Reply.of(reply.json) == replace(reply, error=reply.error and [*reply.error])
    with pytest.raises(ContextLengthError, match="no room"):
        Reply.of(Reply.failed(ContextLengthError("no room")).json).raise_error({})
    with pytest.raises(UnknownAdapterError, match="no main/lora"):
        Reply.of(Reply.failed(UnknownAdapterError("no aa")).json).raise_error({"aa": "main/lora"})
    assert [Reply.of(Reply("a", room=room).json).room for room in (0, None, UNSAID)] == [0, None, UNSAID]
    state = State("a", 7, ["x"], 1, 2, 3, 4, True)
    assert State.of(state.json) == state


def test_a_request_goes_to_a_holder_until_its_rows_are_full():
    placement = Placement(rows=2, most=2)
    placement.update([State("a", holds=["x"]), State("b", holds=["y"])])
    assert placement._order("y") == ["b", None, "a"]
    with placement.place("y"), placement.place("y") as second:
        assert second.replica == "b"
        with placement.place("y") as third:
            assert third.replica == "a", "b has no free row"
            third.at("c", False)
            assert placement.label("c") == "replica-2"
    placement.update([State("c")])
    assert [slot for slot, (seen, _) in placement.by_slot().items() if seen] == [2]
    assert placement.slots[2] == {"missed": 1}
    placement.update([State("d"), State("c")])
    assert placement.label("d") == "replica-0"


def test_what_was_used_since_replicas_were_asked_is_there_whatever_they_say():
    """States are what was there when they were asked: requests come and go before they are read."""
    placement = Placement(rows=2, most=2)
    placement.update([State("a", holds=["x"]), State("b", holds=["w"])])
    with ExitStack() as before:
        placed = before.enter_context(placement.place("w"))
        asked = placement.moment()
        placed.at("b", True)
        with placement.place(None) as placed:
            placed.at("c")
    with placement.place("x") as guess:
        assert guess.replica == "a", "it does not reply"
    placement.update([State("a"), State("b")], asked=asked)
    assert {name: [*seen.holds] for name, seen in placement.seen.items()} == {"a": [], "b": ["w"], "c": []}
    asked = placement.moment()
    with placement.place("x") as guess:
        assert guess.replica == "a"
    placement.update([State("b"), State("c", holds=["z"])], asked=asked)
    assert {name: [*seen.holds] for name, seen in placement.seen.items()} == {"b": [], "c": ["z"]}


def test_calls_are_counted_apart_from_their_answers_and_silence_under_full_load_by_who_waits():
    placement = Placement(rows=8, most=None)
    placement.update([State("a")])
    looks = {False: partial(placement.update, (), False), True: partial(placement.update, (), False, {"a"})}
    with placement.place("x", 8) as first, placement.place("x", 8) as placed:
        for one in (first, placed):
            one.at("a")
        assert (placement.seen["a"].busy, placement.seen["a"].calls) == (16, 2)
        assert [looks[False]() for _ in range(4)] == [False, False, True, False], "Serve has room for 14 more calls"
        placed.heard(False)
        assert not placement.hanging
    with ExitStack() as calls:
        *others, placed = [calls.enter_context(placement.place("x")) for _ in range(16)]
        assert [looks[False]() for _ in range(3)] == [False, False, True], "it has taken none of them"
        for one in (*others, placed):
            one.at("a")
        placed.heard(False)
        assert not any(looks[False]() for _ in range(9)), "the question waits at Serve, and nobody for a reply"
        assert not any([looks[True](), looks[True]()])
        placed.heard(False)
        assert [looks[True]() for _ in range(3)] == [False, False, True]
        placed.heard(True)
        assert (placement.hanging, placement.well) == (True, False)
        placement.update([State("a")])
        assert (placement.hanging, placement.well) == (False, True)
    assert placement.seen["a"].calls == 0


def test_who_says_nothing_for_a_while_beats():
    left = list[str]()

    async def items(*texts: str) -> AsyncGenerator[str]:
        try:
            for text in texts:
                await (asyncio.Event().wait() if text == "waits" else asyncio.sleep(0))
                if text == "fails":
                    raise ValueError(text)
                yield text
        finally:
            left.append(texts[-1])

    async def read(*texts: str, beats: int = 0) -> list[str]:
        read = list[str]()
        async with aclosing(beating(items(*texts), 30 if not beats else 0.001)) as beaten:
            async for item in beaten:
                read += [] if item is None else [item]
                beats -= item is None
                if item is None and not beats:
                    break
        return read

    assert asyncio.run(read("a", "b")) == ["a", "b"]
    with pytest.raises(ValueError, match="fails"):
        asyncio.run(read("a", "fails"))
    assert asyncio.run(read("a", "waits", beats=3)) == ["a"]
    assert left == ["b", "fails", "waits"]


def test_a_new_adapter_goes_where_it_costs_least():
    placement = Placement(rows=4, most=2)
    placement.update([State("a"), State("b")])
    for id, replica in (("1", "a"), ("2", "a"), ("3", "b"), ("4", "b"), ("1", "a"), ("2", "a")):
        with placement.place(id) as placed:
            placed.at(replica, True)
    with placement.place("1", 2, "one"):
        assert [placement.holds_of(owner) for owner in ("one", "two")] == [True, False]
        assert placement.held("1", "one") == (True, 2)
        assert placement.held("1", "two") == (False, 0), "that another has the same content is nobody's to know"
    assert placement.held("1", "one") == (True, 0)
    with placement.place("5") as placed:
        assert placed.replica == "b", "3 was not used for longest"
        assert not any("3" in seen.holds for seen in placement.seen.values())
    with placement.place(None), placement.place(None), placement.place("6") as placed:
        assert placed.order[0] is None
        assert placed.replica in ("a", "b")
