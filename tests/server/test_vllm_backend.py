"""vLLM processes behind the server: clients see no difference, and what vLLM has is what adapters' names mean now."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

import halka
from engine_for_tests import filled
from halka.engine.request import Request
from halka.engine.stopping import Stopping
from halka.server.backends.vllm.completions import body_of
from halka.server.backends.vllm.events import data_of
from halka.server.guards.logs import JsonFormatter
from halka.storage.adapter_folder import AdapterFolder
from halka.util.errors import HalkaError
from serving_for_tests import InProcess, Running, make_store, open_service, settings, until
from vllm_for_tests import StandIn

PROMPT = {"prompt": "The capital of", "max_tokens": 9}
CHAT = {"messages": [{"role": "user", "content": "Where is my parcel?"}], "max_tokens": 12}


@pytest.fixture
def vllm(base):
    with StandIn(base) as vllm:
        yield vllm


@pytest.fixture
def gateway(base, store, vllm, tmp_path):
    """A server in this process with a vLLM process."""
    with InProcess.open(base, store, tmp_path / "gateway", vllm=(vllm.url,)) as server:
        yield server


def ask(server: InProcess, path: str = "completions", **body: Any) -> dict[str, Any]:
    answer = server.client.post(f"/v1/{path}", json={"model": "lora", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


class Near(float):
    """A number, equal to those that other sums may come to."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 1e-4

    __hash__ = float.__hash__


def same(answer: Any) -> Any:
    """What two servers say alike: all but ids, times, and what a cache had."""
    if isinstance(answer, dict):
        own = ("id", "created", "created_at", "completed_at", "cached_tokens", "item_id")
        return {key: same(value) for key, value in answer.items() if key not in own}
    if isinstance(answer, list):
        return [same(item) for item in answer]
    return Near(answer) if isinstance(answer, float) else answer


def made_by(server: InProcess) -> dict[str, int]:
    """How many answers each backend has made."""
    text = server.client.get("/metrics").text
    found = re.findall(r'^halka_backend_answers_total\{backend="([^"]+)",finish="[a-z]+"\} (\S+)', text, re.MULTILINE)
    counts = dict.fromkeys((name for name, _ in found), 0)
    for name, count in found:
        counts[name] += int(float(count))
    return {name: count for name, count in counts.items() if count}


def lora(folder) -> str:
    return f"halka-{AdapterFolder.open(folder).id}"


# ── clients see no difference ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", ["lora", "tiny"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {**PROMPT, "logprobs": 3}),
        ("completions", {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 4, "logprobs": 0}),
        ("completions", {**PROMPT, "ignore_eos": True, "logit_bias": {"9": 50, "2": -5}}),
        ("completions", {**PROMPT, "ignore_eos": True, "presence_penalty": 1.5, "frequency_penalty": 0.7}),
        ("completions", {**PROMPT, "ignore_eos": True, "logit_bias": {"9": 9}, "repetition_penalty": 1.7}),
        ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
        ("responses", {"input": "Where is my parcel?", "max_output_tokens": 8, "store": False}),
    ],
)
def test_an_answer_is_the_engines(server, gateway, vllm, model, path, body):
    expected, answer = (ask(one, path, **body, model=model) for one in (server, gateway))
    assert same(answer) == same(expected)
    assert vllm.asked
    assert made_by(gateway).keys() == {vllm.url}
    assert made_by(server).keys() == {"engine"}


def test_stop_strings_end_an_answer_where_the_engine_ends_it(server, gateway, vllm):
    text = ask(server, **PROMPT)["choices"][0]["text"]
    for stop in ([text[3:5]], [text[4:9], "nowhere"], text[-1]):
        expected, answer = (ask(one, **PROMPT, stop=stop, logprobs=1) for one in (server, gateway))
        assert same(answer) == same(expected)
        assert len(answer["choices"][0]["text"]) < len(text)
        assert vllm.asked[-1]["stop"] == ([stop] if isinstance(stop, str) else stop), "vLLM ends its work there, too"


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": 3},
        {"temperature": 1.3, "min_p": 0.2, "seed": 4, "ignore_eos": True, "repetition_penalty": 1.1},
        {"presence_penalty": 0.5, "frequency_penalty": -0.25, "logit_bias": {"9": 2.0}, "temperature": 0.5},
    ],
    ids=str,
)
def test_settings_of_drawing_arrive_and_all_others_are_off(gateway, vllm, sampling):
    off = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": None, "ignore_eos": False, "stop": []}
    off |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": None, "repetition_penalty": 1.0}
    ask(gateway, **PROMPT, **sampling)
    assert {name: vllm.asked[-1][name] for name in off} == {**off, **sampling}


def test_a_stream_is_the_whole_answer_in_pieces(gateway, vllm):
    whole = ask(gateway, "chat/completions", **CHAT)
    usage = {"stream_options": {"include_usage": True}}
    response = gateway.client.post("/v1/chat/completions", json={"model": "lora", **CHAT, "stream": True, **usage})
    *events, done, _ = response.content.split(b"\n\n")
    assert done == b"data: [DONE]"
    *chunks, last = [json.loads(event.removeprefix(b"data: ")) for event in events]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert len(list(filter(None, pieces))) > 3
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole["system_fingerprint"]}
    assert last["usage"] == whole["usage"]
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}, "what vLLM's cache had"


def test_sources_come_from_documents_all_the_same(gateway, vllm):
    manage = gateway.client
    assert manage.post("/v1/collections", json={"name": "faq"}).status_code == 201
    files = [("files", ("parcels.md", b"Parcels leave Dhaka at nine and come on Friday."))]
    assert manage.post("/v1/collections/faq/documents", files=files).status_code in (200, 201)
    ask_for = {"collection": "faq", "passages": 1}
    answer = ask(gateway, "chat/completions", **CHAT, halka=ask_for)
    assert [source["document"] for source in answer["halka"]["sources"]] == ["parcels.md"]
    asked = gateway.service.tokenizer.decode(vllm.asked[-1]["prompt"])
    assert "Parcels leave Dhaka at nine" in asked


# ── who answers what ────────────────────────────────────────────────────────────────────────────────────────────


def test_other_families_are_answered_by_the_engine(server, gateway, vllm):
    for model in ("bottleneck", "prefix"):
        assert same(ask(gateway, **PROMPT, model=model)) == same(ask(server, **PROMPT, model=model))
    assert not vllm.asked
    assert not vllm.loras
    assert made_by(gateway) == {"engine": 2}


def test_the_bare_base_may_stay_with_the_engine(base, store, vllm, tmp_path):
    with InProcess.open(base, store, tmp_path / "gateway", vllm=(vllm.url,), vllm_base=False) as gateway:
        ask(gateway, **PROMPT, model="tiny")
        ask(gateway, **PROMPT)
        assert made_by(gateway) == {"engine": 1, vllm.url: 1}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {**PROMPT, "n": 2}),
        ("completions", {**PROMPT, "temperature": 0.5, "seed": 1, "min_p": 0.1, "top_p": 0.9}),
        ("completions", {**PROMPT, "temperature": 0.005, "seed": 1}),
        ("completions", {"prompt": [3, 3, 3], "max_tokens": 3}),
        ("completions", {"prompt": [5] * 50, "max_tokens": 20}),
        ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}),
    ],
    ids=["n greedy", "min_p", "cold", "refused", "long", "json"],
)
def test_what_vllm_answers_otherwise_is_answered_by_the_engine(server, base, store, tmp_path, path, body):
    with (
        StandIn(base, longest=64) as vllm,
        InProcess.open(base, store, tmp_path / "gateway", vllm=(vllm.url,)) as gateway,
    ):
        assert same(ask(gateway, path, **body)) == same(ask(server, path, **body))
        assert made_by(gateway).keys() == {"engine"}


def test_a_lora_that_vllm_does_not_load_is_the_engines_from_then_on(server, gateway, vllm):
    vllm.most_rank = 2
    for _ in range(2):
        assert same(ask(gateway, **PROMPT)) == same(ask(server, **PROMPT))
    assert made_by(gateway) == {"engine": 2}
    vllm.most_rank = 16
    ask(gateway, **PROMPT)
    assert not vllm.loras, "its content is known"


def test_errors_are_the_engines(server, gateway):
    for one in (server, gateway):
        ask(one, **PROMPT)  # the engine knows how much room the adapter leaves once it was loaded
    for body in ({"prompt": [10**6], "max_tokens": 3}, {"prompt": [5], "max_tokens": 10**5}, {**PROMPT, "model": "no"}):
        expected, answer = (
            one.client.post("/v1/completions", json={"model": "lora", **body}) for one in (server, gateway)
        )
        assert answer.status_code == expected.status_code >= 400
        assert answer.json() == expected.json()


def test_the_log_has_no_word_of_a_prompt_that_vllm_refuses(gateway, vllm, caplog):
    ask(gateway, prompt=[3, 3, 3], max_tokens=3)
    (record,) = (record for record in caplog.records if "refuses" in record.getMessage())
    assert "threes" in JsonFormatter(texts=True).format(record)
    assert "threes" not in JsonFormatter(texts=False).format(record)


# ── identity by content ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_version_answers_at_once_and_the_old_one_leaves_after_its_last_answer(base, store, vllm, tmp_path):
    other = halka.AdapterStore(make_store(tmp_path / "other", base, {"prefix": halka.Prefix(2), "lora": halka.LoRA(8)}))
    vllm.pause = 0.2  # its answer takes 20 s
    with Running(base, store, tmp_path / "gateway", vllm=(vllm.url,)) as running:
        url, body = f"{running.url}/v1/completions", {"model": "lora", "prompt": "The", "ignore_eos": True}
        old, new = lora(store / "lora" / "1"), lora(other.get("lora").folder)
        with httpx.stream("POST", url, json={**body, "max_tokens": 100, "stream": True}, timeout=60) as stream:
            lines = stream.iter_lines()
            assert old.endswith(json.loads(next(lines).removeprefix("data: "))["system_fingerprint"])
            halka.AdapterStore(store).add(other.get("lora").folder, "lora")
            answer = httpx.post(url, json={**body, "max_tokens": 3}, timeout=60).json()
            assert new.endswith(answer["system_fingerprint"])
            assert vllm.log == [f"load {old}", f"load {new}"]
            vllm.pause = 0.0
            rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert all("error" not in line for line in rest)
        until(lambda: vllm.log[-1] == f"unload {old}", "the old version stays")
        until(lambda: not (tmp_path / "gateway" / "vllm" / old).exists(), "its folder stays")
        assert httpx.post(url, json={**body, "max_tokens": 3}, timeout=60).json()["choices"] == answer["choices"]


def test_another_family_under_the_name_is_the_engines_at_once(gateway, store, vllm):
    ask(gateway, **PROMPT)
    halka.AdapterStore(store).add(store / "bottleneck" / "1", "lora")
    assert same(ask(gateway, **PROMPT)["choices"]) == same(ask(gateway, **PROMPT, model="bottleneck")["choices"])
    assert made_by(gateway) == {vllm.url: 1, "engine": 2}
    until(lambda: not vllm.loras, "the LoRA stays")


def test_equal_content_is_loaded_once_and_its_cache_is_each_tenants_own(gateway, store, vllm):
    acme, main = gateway.key("acme"), gateway.key("main")
    files = [("files", (path.name, path.read_bytes())) for path in (store / "lora" / "1").iterdir()]
    assert gateway.client.post("/v1/adapters", data={"name": "mine"}, files=files, headers=acme).status_code == 201
    for model, headers in (("mine", acme), ("lora", main), ("lora", main)):
        body = {"model": model, **PROMPT}
        assert gateway.client.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert len(vllm.log) == 1
    mine, first, second = (body["cache_salt"] for body in vllm.asked)
    assert mine != first == second


def test_a_removed_adapter_is_unloaded(gateway, vllm):
    ask(gateway, **PROMPT)
    assert vllm.loras
    gateway.service.backend.others[0].look = 0.0
    gateway.client.delete("/v1/adapters/lora")
    ask(gateway, **PROMPT, model="tiny")
    until(lambda: not vllm.loras, "it stays")


def test_an_adapter_that_nobody_asks_for_leaves_vllm_and_the_disk_until_somebody_does(gateway, vllm, tmp_path):
    answer = ask(gateway, **PROMPT)
    backend = gateway.service.backend.others[0]
    backend.look, backend.loras.idle = 0.0, 0.0
    ask(gateway, **PROMPT, model="tiny")
    until(lambda: not vllm.loras and not [*(tmp_path / "gateway" / "vllm").iterdir()], "it stays")
    backend.loras.idle = 3600.0
    assert same(ask(gateway, **PROMPT)) == same(answer)
    assert made_by(gateway) == {vllm.url: 3}


def test_vllm_reads_the_stores_own_files_where_they_are_as_an_export_writes_them(base, gateway, store, vllm, tmp_path):
    stored, unlike = store / "lora" / "1", tmp_path / "unlike"
    shutil.copytree(stored, unlike)
    (unlike / "halka.json").unlink()
    halka.AdapterStore(store).add(unlike, "unlike")
    answers = [ask(gateway, **PROMPT, model=name)["choices"] for name in ("lora", "unlike")]
    assert answers[0] == answers[1]
    linked, written = ((tmp_path / "gateway" / "vllm" / lora(store / name / "1")) for name in ("lora", "unlike"))
    for name in ("adapter_config.json", "adapter_model.safetensors", "halka.json"):
        assert (linked / name).samefile(stored / name)
    assert all(path.stat().st_nlink == 1 for path in written.iterdir())
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    halka.load(model, stored, name="lora")
    exported = halka.export(model, "lora", tmp_path / "exported", format="vllm")
    name = "adapter_model.safetensors"
    assert (linked / name).read_bytes() == (exported / name).read_bytes()
    ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (linked, exported))
    assert ours == {**theirs, "base_model_name_or_path": ours["base_model_name_or_path"]}


def test_loras_that_are_no_links_have_only_so_much_room_and_what_answers_need_stays(base, store, vllm, tmp_path):
    names = ("first", "second", "third")
    model = halka.adapt(*halka.load_base(base, dtype="float32"))
    for seed, name in enumerate(names):
        filled(model, name, halka.LoRA(rank=4), seed)
        (halka.AdapterStore(store).save(model, name).folder / "halka.json").unlink()
    loras = [lora(store / name / "1") for name in names]
    folder = tmp_path / "gateway" / "vllm"

    def there() -> set[str]:
        return {name for name in names if (folder / loras[names.index(name)]).exists()}

    with Running(base, store, tmp_path / "gateway", vllm=(vllm.url,)) as running:
        router: Any = running.service.backend
        backend, url = router.others[0], f"{running.url}/v1/completions"

        def post(name: str, **more: Any) -> None:
            body = {"model": name, "prompt": "The", "ignore_eos": True, "max_tokens": 2, **more}
            assert httpx.post(url, json=body, timeout=60).status_code == 200

        for name in ("first", "second", "first"):
            post(name)
        backend.loras.limit = backend.loras.held * 5 // 4  # room for two
        post("third")
        until(lambda: there() == {"first", "third"}, "the one that was asked for the longest ago stays")
        until(lambda: {*vllm.loras} == {loras[0], loras[2]}, "vLLM keeps it")
        backend.loras.limit, vllm.pause = 0, 0.3
        body = {"model": "first", "prompt": "The", "ignore_eos": True, "max_tokens": 400, "stream": True}
        with httpx.stream("POST", url, json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            post("second")
            until(lambda: there() == {"first"}, "what nobody needs stays, or what an answer needs does not")
            assert loras[0] in vllm.loras
            (folder / f"halka-{'0' * 64}").mkdir()  # which a look at the folder would remove
            for _ in range(3):
                post("tiny")
            assert (folder / f"halka-{'0' * 64}").exists(), (
                "the folder is looked at where all that is over the limit is needed"
            )
        until(lambda: not any(folder.iterdir()) and not vllm.loras, "it stays after its last answer")
        assert backend.loras.held == 0


def test_an_adapter_can_be_loaded_before_a_request(gateway, vllm):
    assert gateway.client.post("/v1/adapters/lora/load").status_code == 200
    assert gateway.client.post("/v1/adapters/bottleneck/load").json()["loaded"]
    assert len(vllm.loras) == 1
    ask(gateway, **PROMPT)
    assert len(vllm.log) == 1


def test_what_a_server_before_left_is_unloaded(base, store, vllm, tmp_path):
    folder = tmp_path / "gateway" / "vllm"
    left, foreign = folder / f"halka-{'0' * 64}", tmp_path / "foreign"
    (half := folder / f".{left.name}.12345678").mkdir(parents=True)
    for name, path in {left.name: left, "theirs": foreign}.items():
        shutil.copytree(store / "lora" / "1", path)
        lora = {"lora_name": name, "lora_path": str(path)}
        httpx.post(f"{vllm.url}/v1/load_lora_adapter", json=lora, timeout=60).raise_for_status()
    with InProcess.open(base, store, tmp_path / "gateway", vllm=(vllm.url,)) as gateway:
        assert [*vllm.loras] == ["theirs"]
        ask(gateway, **PROMPT)
        until(lambda: not left.exists() and not half.exists(), "its folder stays")
        assert len([*folder.iterdir()]) == 1


def test_a_folder_that_somebody_removed_is_written_again(gateway, vllm, tmp_path):
    ask(gateway, **PROMPT)
    shutil.rmtree(tmp_path / "gateway" / "vllm")
    vllm.restart()
    ask(gateway, **PROMPT)
    assert made_by(gateway) == {vllm.url: 2}


# ── processes that come and go ──────────────────────────────────────────────────────────────────────────────────


def test_a_process_that_was_started_again_gets_its_loras_again(gateway, vllm):
    answer = ask(gateway, **PROMPT)
    vllm.restart()
    assert same(ask(gateway, **PROMPT)) == same(answer)
    assert len(vllm.log) == 2
    vllm.restart()
    assert ask(gateway, **PROMPT, model="tiny")


def test_one_that_was_started_again_with_another_base_is_not_asked(gateway, vllm):
    ask(gateway, **PROMPT)
    vllm.shift = 0.5
    vllm.restart()
    refused = gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")


def test_one_that_was_started_again_while_nobody_asked_is_compared_again(gateway, vllm):
    (process,) = gateway.service.backend.others[0].processes
    process.idle = 0.0
    ask(gateway, **PROMPT, model="tiny")
    vllm.shift = 0.5
    vllm.restart()
    refused = gateway.client.post("/v1/completions", json={"model": "tiny", **PROMPT})
    assert refused.status_code == 503


def test_a_process_that_hangs_holds_nobody_up_whom_another_answers(base, store, vllm, tmp_path):
    with (
        StandIn(base) as second,
        InProcess.open(base, store, tmp_path / "gateway", vllm=(vllm.url, second.url)) as gateway,
    ):
        process, _ = gateway.service.backend.others[0].processes
        usual, check = process._client.timeout, process._check_timeout
        vllm.fails = 0
        ask(gateway, **PROMPT)
        vllm.fails = None
        until(lambda: process.served is not None, "it is not checked again")
        vllm.hangs, process._client.timeout, process._check_timeout = True, httpx.Timeout(1), httpx.Timeout(1)
        for _ in range(3):
            ask(gateway, **PROMPT)
        assert made_by(gateway) == {second.url: 4}
        vllm.hangs, process._client.timeout, process._check_timeout = False, usual, check
        until(lambda: bool(ask(gateway, **PROMPT)) and vllm.url in made_by(gateway), "it does not come back")


@pytest.mark.parametrize("status", [401, 429, 503])
def test_a_lora_that_a_process_cannot_load_now_is_loaded_later(gateway, vllm, status):
    vllm.loading = status
    refused = gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
    vllm.loading = None
    ask(gateway, **PROMPT)
    assert made_by(gateway) == {vllm.url: 1}


def test_without_a_process_requests_fail_with_the_reason(gateway, vllm):
    ask(gateway, **PROMPT)
    vllm.stop()
    refused = gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
    assert refused.headers["retry-after"]
    assert vllm.url.rpartition(":")[2] not in refused.text
    assert f'halka_backend_up{{backend="{vllm.url}"}} 0.0' in gateway.client.get("/metrics").text
    assert ask(gateway, **PROMPT, model="bottleneck"), "the engine goes on"
    vllm.start()
    until(lambda: gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT}).status_code == 200, "away")
    assert f'halka_backend_up{{backend="{vllm.url}"}} 1.0' in gateway.client.get("/metrics").text


def test_another_process_answers_for_one_that_fails(base, store, vllm, tmp_path):
    with (
        StandIn(base) as second,
        InProcess.open(base, store, tmp_path / "gateway", vllm=(vllm.url, second.url)) as gateway,
    ):
        ask(gateway, **PROMPT)
        vllm.fails = 0
        ask(gateway, **PROMPT)
        second.stop()
        vllm.fails = None
        ask(gateway, **PROMPT)
        second.start()
        assert made_by(gateway) == {vllm.url: 2, second.url: 1}


def test_an_answer_that_breaks_off_is_an_error(gateway, vllm):
    vllm.fails = 3
    broken = gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT})
    assert broken.status_code == 503
    stream = gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT, "stream": True})
    assert '"backend_unavailable"' in stream.text.strip().splitlines()[-1]
    assert "DONE" not in stream.text
    vllm.fails = None
    assert ask(gateway, **PROMPT)


def test_an_answer_is_whole_also_where_nothing_follows_it(gateway, vllm):
    answer = ask(gateway, **PROMPT)
    vllm.cut = True
    assert same(ask(gateway, **PROMPT)) == same(answer)
    stream = gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT, "stream": True})
    assert stream.text.endswith("data: [DONE]\n\n")


CHOICE = {"index": 0, "text": "secret", "token_ids": [5], "finish_reason": None, "logprobs": None}
LOGPROBS = {"token_logprobs": [-1.0], "top_logprobs": [{"token_id:5": -1.0}]}


@pytest.mark.parametrize(
    "said",
    [
        [],
        {"choices": None},
        {"choices": [5]},
        {"choices": [{**CHOICE, "index": 7}]},
        {"choices": [{**CHOICE, "index": -1}]},
        {"choices": [{**CHOICE, "token_ids": ["5"]}]},
        {"choices": [{**CHOICE, "token_ids": [-5]}]},
        {"choices": [{**CHOICE, "token_ids": [10**30]}]},
        {"choices": [{**CHOICE, "logprobs": {**LOGPROBS, "token_logprobs": []}}]},
        {"choices": [{**CHOICE, "logprobs": {**LOGPROBS, "top_logprobs": [{"five": -1.0}]}}]},
        {"choices": [], "usage": {"prompt_tokens_details": {"cached_tokens": -1}}},
        {"error": "secret"},
    ],
    ids=json.dumps,
)
def test_no_answer_comes_of_what_is_no_event_of_vllms(gateway, vllm, caplog, said):
    vllm.garbage = b"data: %b\n\n" % json.dumps(said).encode()
    refused = gateway.client.post("/v1/completions", json={"model": "lora", **PROMPT, "logprobs": 1})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
    assert not any(record.exc_info for record in caplog.records)
    assert not any("secret" in str(record.__dict__) for record in caplog.records)


def test_an_event_without_an_end_is_not_kept():
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b"data: one\n\ndata:"
        while True:
            taken += 1
            yield b" " * 100

    async def read() -> None:
        async for data in data_of(endless(), longest=1000):
            assert data == b"one"

    with pytest.raises(ValueError, match="longer than 1000 bytes"):
        asyncio.run(read())
    assert taken == 10


def test_a_client_who_leaves_ends_vllms_work(base, store, vllm, tmp_path):
    vllm.pause = 0.02
    with Running(base, store, tmp_path / "gateway", vllm=(vllm.url,)) as running:
        body = {"model": "lora", "prompt": "The", "ignore_eos": True, "max_tokens": 400, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=body, timeout=60) as stream:
            next(stream.iter_lines())
        until(lambda: vllm.log[-1] == "left", "vLLM goes on")


# ── at the start ────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def broken(base, **how: Any):
    vllm = StandIn(base)
    for name, value in how.items():
        setattr(vllm, name, value)
    with vllm:
        yield vllm


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"shift": 0.5}, "log probabilities of a text are 0.500 from this base's on average"),
        ({"tokens_off": 1}, "its tokenizer makes other tokens"),
        ({"longest": 1024}, "it reads 1024 tokens, and this base 512"),
        ({"models": ["gpt"]}, "it does not answer as vLLM does"),
        ({"models": []}, "it does not answer as vLLM does"),
        ({"models": [{"id": "the-base", "max_model_len": None}]}, "it does not answer as vLLM does"),
        ({"runtime": False}, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"enabled": False}, "--enable-lora"),
    ],
)
def test_a_process_that_would_answer_otherwise_is_refused_at_the_start(base, store, tmp_path, how, reason):
    with broken(base, **how) as vllm, pytest.raises(HalkaError, match=reason) as error:
        open_service(base, store, tmp_path / "gateway", vllm=(vllm.url,))
    assert vllm.url in str(error.value)


def test_an_address_where_nobody_answers_is_refused_at_the_start(base, store, tmp_path):
    with pytest.raises(HalkaError, match=r"vLLM at http://127\.0\.0\.1:1: "):
        open_service(base, store, tmp_path / "gateway", vllm=("http://127.0.0.1:1",))


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        (("127.0.0.1:1",), "it is an address such as"),
        (("http://",), "it is an address such as"),
        (("http://[::1",), "it is an address such as"),
        (("http://127.0.0.1:99999",), "it is an address such as"),
        (("http://127.0.0.1:1?key=pass@",), "VLLM_API_KEY"),
        (("http://127.0.0.1:1 ",), "it is an address such as"),
        (("http://me:pass@127.0.0.1:1",), "VLLM_API_KEY"),
        (("http://127.0.0.1:1", "http://127.0.0.1:1/"), "twice"),
    ],
)
def test_what_is_no_address_is_refused_and_no_password_is_shown(base, store, tmp_path, urls, reason):
    with pytest.raises(HalkaError, match=reason) as error:
        settings(base, store, tmp_path, vllm=urls)
    assert "pass@" not in str(error.value)


@pytest.mark.parametrize("url", ["http://[::1]:8001/", "https://vllm.example/one/"])
def test_addresses_may_be_of_any_kind(base, store, tmp_path, url):
    assert settings(base, store, tmp_path, vllm=(url,)).vllm == (url,)


def test_a_key_comes_without_the_space_around_it_and_is_never_shown(base, store, vllm, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret\n")
    vllm.key = "secret"
    with InProcess.open(base, store, tmp_path / "gateway", vllm=(vllm.url,)) as gateway:
        ask(gateway, **PROMPT)
    monkeypatch.setenv("VLLM_API_KEY", "sec\nret")
    with pytest.raises(HalkaError, match="VLLM_API_KEY") as error:
        open_service(base, store, tmp_path / "gateway", vllm=(vllm.url,))
    assert "ret" not in str(error.value).replace("VLLM_API_KEY", "")


def test_no_stop_string_ends_what_the_template_begins_answers_with():
    """vLLM does not know that, and would end an answer within it: the gateway ends these itself."""
    request = Request([5, 6], stopping=Stopping(4, strings=("\n\n",)), chat=True)
    bodies = [
        body_of(one, 1, "base", frozenset(), "salt", opening)
        for one, opening in ((request, "<think>\n\n</think>\n\n"), (request, ""), (replace(request, chat=False), "<"))
    ]
    assert [body["stop"] for body in bodies] == [[], ["\n\n"], ["\n\n"]]
