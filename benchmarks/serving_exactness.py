"""Is every answer over HTTP the one that its adapter gives alone, and is everything there after a SIGKILL?

    python benchmarks/serving_exactness.py             # some minutes of two cores

A tiny random Llama in fp32 with SmolLM2's tokenizer, behind `halka serve`, with three tenants whose adapters have the
same names and other contents. 2,000 chat requests of at most 200 kinds, greedy and seeded, with n up to 3, streamed or
not, come from 16 clients, some of which leave before the end. Meanwhile adapters of four families are uploaded as next
versions, deleted, loaded, pinned and unloaded, and documents are replaced and searched. Every answer names the content
that made it (`system_fingerprint`): it must be one that the name meant while the request ran, and its text the one of a
single run with that content; where another text begins at a token that was chosen by less than 1e-4, of logits or of
probability, it is listed as a tie. A search after an upload must have the new text, and no other tenant's. One tenant's
key allows three answers at once: its 429s are the only errors that may come. The server's memory is read after
each quarter of the requests, when none is under way.

Then the server is killed (SIGKILL) in mid-load, twice, and started again: every adapter, document, key and job whose
upload was acknowledged must be there, whole. The result goes to benchmarks/results/serving_exactness.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from serving import free_port
from side_by_side import setup
from transformers import AutoConfig, AutoModelForCausalLM

import halka
from halka.engine.sampling import kept, uniform
from halka.models.loading import load_base
from halka.server.guards.keys import Keys, Limits
from halka.storage.adapter_folder import AdapterFolder

HERE = Path(__file__).parent
SIZES: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"intermediate_size": 96, "max_position_embeddings": 512, "initializer_range": 0.2, "tie_word_embeddings": True},
}
FAMILIES = {
    "lora": halka.LoRA(rank=4),
    "bottleneck": halka.Bottleneck(width=8),
    "prefix": halka.Prefix(length=5),
    "prompt": halka.Prompt(length=6),
}
TENANTS = ("main", "red", "blue")
LIMITED = "blue"
NAMES = ("a", "b", "c", "d")
DOCUMENTS = 4
CONTENTS = 3  # of each family
CLIENTS = 16
NEAR = 1e-4
Files = dict[str, bytes]


def make_base(folder: Path) -> None:
    _, tokenizer = load_base("smollm2-135m", device="cpu")
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), **ends, **SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Contents:
    """Contents of adapters as files to upload, by id, and what a single run says with each."""

    def __init__(self, base: Path, folder: Path):
        self.model = halka.adapt(*load_base(base, dtype="float32", device="cpu"))
        self.files: dict[str, Files] = {}
        self._answers: dict[tuple[str, Any], list[halka.engine.Answer]] = {}
        for seed in range(CONTENTS):
            for family, method in FAMILIES.items():
                adapter = self.model.add("new", method, seed=seed)
                generator = torch.Generator().manual_seed(seed)
                with torch.no_grad():
                    for parameter in adapter.parameters():
                        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
                path = halka.save(self.model, "new", folder / f"{family}-{seed}")
                self.model.remove("new")
                id = AdapterFolder.open(path).id
                self.files[id] = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
                halka.load(self.model, path, name=id)

    def answers(self, id: str | None, kind: Kind) -> list[halka.engine.Answer]:
        """What a single run of this kind answers, `n` times."""
        key = (id or "", kind)
        if key not in self._answers:
            request = halka.Request.of(
                kind.text,
                self.model.tokenizer,
                adapter=id,
                sampling=halka.Sampling(temperature=kind.temperature, seed=kind.seed),
                stopping=halka.Stopping(max_new_tokens=kind.tokens),
            )
            with halka.Engine(self.model, rows=1) as engine:
                self._answers[key] = engine.submit(request, kind.n)
                while engine.step():
                    pass
        return self._answers[key]

    def is_tie(self, id: str | None, kind: Kind, number: int, text: str) -> bool:
        """Whether another text than answer `number` begins at a token that was chosen by less than `NEAR`."""
        answer, tokenizer = self.answers(id, kind)[number], self.model.tokenizer
        same = 0
        while same < len(answer.tokens) and text.startswith(
            tokenizer.decode(answer.tokens[: same + 1]).rstrip("\ufffd")
        ):
            same += 1
        with torch.inference_mode(), self.model.use(id):
            ids = torch.tensor([[*answer.request.prompt, *answer.tokens[:same]]])
            logits = self.model.base(input_ids=ids, use_cache=False).logits[0, -1]
        if not kind.temperature:
            first, second = logits.topk(2).values.tolist()
            return first - second < NEAR
        _, probabilities = kept(logits.numpy(), answer.request.sampling)
        sums = probabilities.cumsum()
        return bool(abs(sums - uniform(kind.seed + number, same) * sums[-1]).min() < NEAR)


@dataclass(frozen=True)
class Kind:
    """A request as anybody may send it."""

    text: str
    temperature: float
    seed: int
    tokens: int
    n: int

    @property
    def body(self) -> dict[str, Any]:
        messages = [{"role": "user", "content": self.text}]
        sampling = {"temperature": self.temperature, "seed": self.seed, "max_tokens": self.tokens, "n": self.n}
        return {"messages": messages, **sampling}


def kinds_of(count: int, draw: random.Random) -> list[Kind]:
    words = ["rain", "parcel", "train", "seven", "cold", "letters", "ends", "where", "blue", "again"]
    beginnings = [" ".join(draw.choices(words, k=30)) for _ in range(3)]
    return [
        Kind(
            f"{draw.choice(beginnings)[: draw.randrange(150)]} {number}",
            draw.choice((0.0, 0.0, 0.8, 1.3)),
            draw.randrange(1000),
            draw.randrange(1, 17),
            draw.choice((1, 1, 1, 2, 3)),
        )
        for number in range(count)
    ]


# ── the server ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """`halka serve` in a process of its own, which can be killed and started again."""

    def __init__(self, work: Path):
        self.work, self.port, self.process = work, free_port(), None
        self.keys = Keys(work / "data" / "keys.json")
        self.texts = {
            tenant: self.keys.add(tenant, "manager", limits=Limits(concurrency=3) if tenant == LIMITED else None)[0]
            for tenant in TENANTS
        }

    def start(self) -> None:
        command = [sys.executable, "-m", "halka", "serve", "--base", str(self.work / "base"), "--dtype", "float32"]
        command += ["--store", str(self.work / "store"), "--collections", str(self.work / "collections")]
        command += ["--data", str(self.work / "data"), "--port", str(self.port), "--rows", "8", "--jobs", "0"]
        command += ["--adapter-memory", "0.0004"]
        with (self.work / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"the server ended: {(self.work / 'log').read_text()[-2000:]}")
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise SystemExit("the server is not ready after a minute")

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def memory(self) -> int:
        assert self.process is not None
        return psutil.Process(self.process.pid).memory_info().rss

    def client(self, tenant: str) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {self.texts[tenant]}"}
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=120)


# ── what is sent, and what must come ────────────────────────────────────────────────────────────────────────────────


@dataclass
class Meaning:
    """What a tenant's name for an adapter may mean now: the last is the newest version, the others are about to go."""

    ids: list[str] = field(default_factory=list[str])
    seen: list[set[str]] = field(default_factory=list[set[str]])  # by each request under way: what it meant meanwhile

    def set(self, ids: list[str]) -> None:
        self.ids = ids
        for seen in self.seen:
            seen.update(ids)

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[set[str]]:
        """All that it may mean within the block."""
        seen = {*self.ids}
        self.seen.append(seen)
        try:
            yield seen
        finally:
            self.seen = [other for other in self.seen if other is not seen]


class Run:
    """Clients, and those who change what is served meanwhile."""

    def __init__(self, server: Server, contents: Contents, kinds: list[Kind], seed: int):
        self.server, self.contents, self.kinds, self.draw = server, contents, kinds, random.Random(seed)
        self.meanings = {(tenant, name): Meaning() for tenant in TENANTS for name in NAMES}
        self.documents: dict[tuple[str, int], str] = {}
        self.changing = {key: asyncio.Lock() for key in [*self.meanings, *((t, n) for t in TENANTS for n in range(99))]}
        self.done, self.wrong, self.ties, self.ids = Counter[str](), list[str](), list[str](), set[str]()
        self.clients = {tenant: server.client(tenant) for tenant in TENANTS}

    async def close(self) -> None:
        for client in self.clients.values():
            await client.aclose()

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def ask(self) -> None:
        """One request of a kind, by some tenant with some adapter or none; its answer is checked."""
        kind, tenant = self.draw.choice(self.kinds), self.draw.choice(TENANTS)
        name = self.draw.choice((*NAMES, None))
        meaning = self.meanings[tenant, name] if name else Meaning()
        body = {**kind.body, "model": name or "base"}
        streamed, leaves = self.draw.random() < 0.5, self.draw.random() < 0.1
        async with meaning.watched() as ids:
            try:
                if streamed:
                    answer = await self._streamed(tenant, body, leaves)
                else:
                    response = await self.clients[tenant].post("/v1/chat/completions", json=body)
                    answer = response.json() if response.status_code == 200 else self._refused(tenant, response)
            except httpx.TransportError as error:
                self.done["lost"] += 1
                self.wrong.append(f"{tenant} {name}: {error!r}")
                return
            if answer is not None:
                self._check(tenant, name, kind, answer, ids)

    async def _streamed(self, tenant: str, body: dict[str, Any], leaves: bool) -> dict[str, Any] | None:
        """The chunks of a stream as one answer; None if the client left, or was refused."""
        texts, finishes, head = Counter[int](), dict[int, str](), dict[str, Any]()
        parts: dict[int, str] = {}
        async with self.clients[tenant].stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True}
        ) as response:
            if response.status_code != 200:
                await response.aread()
                return self._refused(tenant, response)
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                head = json.loads(line[6:])
                if "error" in head:
                    self.wrong.append(f"{tenant}: a stream ended with {head}")
                    return None
                for choice in head["choices"]:
                    index = choice["index"]
                    texts[index] += 1
                    parts[index] = parts.get(index, "") + (choice["delta"].get("content") or "")
                    if choice["finish_reason"]:
                        if index in finishes:
                            self.wrong.append(f"{tenant}: two finish reasons")
                        finishes[index] = choice["finish_reason"]
                if leaves and sum(texts.values()) > 2:
                    self.done["left"] += 1
                    return None
        choices = [
            {"index": index, "message": {"content": parts[index]}, "finish_reason": finishes.get(index)}
            for index in sorted(parts)
        ]
        return {**head, "choices": choices}

    def _refused(self, tenant: str, response: httpx.Response) -> None:
        status = response.status_code
        self.done[f"{status}"] += 1
        if not (status == 429 and tenant == LIMITED and "retry-after" in response.headers) and status != 404:
            self.wrong.append(f"{tenant}: {status} {response.text[:300]}")

    def _check(self, tenant: str, name: str | None, kind: Kind, answer: dict[str, Any], ids: set[str]) -> None:
        self.done["answers"] += len(answer["choices"])
        if answer["id"] in self.ids:
            self.wrong.append(f"{tenant}: {answer['id']} came twice")
        self.ids.add(answer["id"])
        made_by = answer["system_fingerprint"]
        if made_by not in (ids if name else {None}):
            self.wrong.append(f"{tenant} {name}: {made_by} answered, of {ids}")
            return
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        single = [one.text for one in self.contents.answers(made_by, kind)]
        if len(texts) != kind.n or any(choice["finish_reason"] is None for choice in answer["choices"]):
            self.wrong.append(f"{tenant} {name} {kind}: {answer['choices']} of {kind.n}")
            return
        for number, (text, expected) in enumerate(zip(texts, single, strict=True)):
            if text != expected:
                tie = self.contents.is_tie(made_by, kind, number, text)
                (self.ties if tie else self.wrong).append(f"{tenant} {name} {kind}: {text!r}, not {expected!r}")

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def change(self) -> None:
        tenant = self.draw.choice(TENANTS)
        if self.draw.random() < 0.3:
            await self.replace_document(tenant, self.draw.randrange(DOCUMENTS))
            return
        name = self.draw.choice(NAMES)
        async with self.changing[tenant, name]:
            what = self.draw.choice(("upload", "upload", "upload", "load", "pin", "unpin", "unload", "delete"))
            if what == "upload":
                await self.upload(tenant, name)
            elif what == "delete":
                await self.delete(tenant, name)
            else:
                response = await self.clients[tenant].post(f"/v1/adapters/{name}/{what}")
                self._changed(tenant, what, response, 200, 404, 409)
                if what == "pin":  # some room must be left
                    await self.clients[tenant].post(f"/v1/adapters/{name}/unpin")

    async def upload(self, tenant: str, name: str) -> None:
        meaning, id = self.meanings[tenant, name], self.draw.choice([*self.contents.files])
        before = meaning.ids
        meaning.set([*before, id])
        files = [("files", (file, content)) for file, content in self.contents.files[id].items()]
        response = await self.clients[tenant].post("/v1/adapters", data={"name": name}, files=files)
        if self._changed(tenant, "upload", response, 201):
            meaning.set([id])
        else:
            meaning.set(before)

    async def delete(self, tenant: str, name: str) -> None:
        """Remove the newest of several versions: the name means the one before again, whatever that is."""
        described = await self.clients[tenant].get(f"/v1/adapters/{name}")
        if described.status_code != 200 or len(described.json()["versions"]) < 2:
            return
        meaning = self.meanings[tenant, name]
        meaning.set([*self.contents.files])
        versions = described.json()["versions"]
        response = await self.clients[tenant].delete(f"/v1/adapters/{name}", params={"version": versions[-1]})
        self._changed(tenant, "delete", response, 200)
        await self.upload(tenant, name)

    async def replace_document(self, tenant: str, number: int) -> None:
        """Upload a document's next text, and find it."""
        async with self.changing[tenant, number]:
            word = f"{tenant}{self.draw.randrange(10**9)}"
            text = f"The password of door {number} is {word}."
            upload = {"files": (f"door{number}.md", text.encode())}
            response = await self.clients[tenant].post("/v1/collections/doors/documents", files=upload)
            if not self._changed(tenant, "document", response, 201):
                return
            self.documents[tenant, number] = text
            query = {"query": f"The password of door {number}", "count": 20}
            response = await self.clients[tenant].post("/v1/collections/doors/search", json=query)
            if self._changed(tenant, "search", response, 200):
                texts = [hit["text"] for hit in response.json()["data"]]
                if not any(text in found for found in texts):
                    self.wrong.append(f"{tenant}: {text!r} is not in {texts}")
                if others := [
                    found for found in texts for other in TENANTS if other != tenant and f" {other}" in found
                ]:
                    self.wrong.append(f"{tenant}: another tenant's {others}")

    def _changed(self, tenant: str, what: str, response: httpx.Response, *right: int) -> bool:
        self.done[f"{what} {response.status_code}"] += 1
        if response.status_code == 429 and tenant == LIMITED:
            return False
        if response.status_code not in right:
            self.wrong.append(f"{tenant}: {what}: {response.status_code} {response.text[:300]}")
        return response.status_code == right[0]

    async def begin(self) -> None:
        for tenant in TENANTS:
            for name in NAMES:
                await self.upload(tenant, name)
            response = await self.clients[tenant].post("/v1/collections", json={"name": "doors"})
            assert response.status_code == 201, response.text
            for number in range(DOCUMENTS):
                await self.replace_document(tenant, number)

    async def load(self, requests: int) -> None:
        """So many requests from the clients, one change for every five of them."""
        left: Iterator[int] = iter(range(requests))

        async def client() -> None:
            for number in left:
                await (self.change() if number % 6 == 5 else self.ask())

        await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def answered(server: Server, contents: Contents, requests: int, kinds: int, seed: int) -> dict[str, Any]:
    run = Run(server, contents, kinds_of(kinds, random.Random(seed)), seed)
    await run.begin()
    memory = list[int]()
    for _ in range(4):
        await run.load(requests // 4)
        memory.append(server.memory)
    await run.close()
    return {
        "requests": requests,
        "counts": dict(sorted(run.done.items())),
        "wrong": run.wrong,
        "ties": run.ties,
        "memory": {"after_each_quarter": memory, "ratio": memory[-1] / memory[0]},
    }


# ── SIGKILL ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def killed(server: Server, contents: Contents, seed: int) -> dict[str, Any]:
    """Kill the server while all of this is changed; what was acknowledged must be there when it is back."""
    run = Run(server, contents, kinds_of(20, random.Random(seed)), seed)
    acknowledged: dict[str, list[tuple[str, Any]]] = {"adapters": [], "documents": [], "keys": [], "jobs": []}
    rows = [{"prompt": "a", "completion": "b"}] * 4

    async def keep(tenant: str, number: int) -> None:
        client = run.clients[tenant]
        while True:
            id = run.draw.choice([*contents.files])
            name = f"k{seed}-{number}-{len(acknowledged['adapters'])}"
            files = [("files", (file, content)) for file, content in contents.files[id].items()]
            response = await client.post("/v1/adapters", data={"name": name}, files=files)
            if response.status_code == 201:
                acknowledged["adapters"].append((tenant, (name, id)))
            upload = {"files": (f"{name}.md", f"What {name} says.".encode())}
            response = await client.post("/v1/collections/doors/documents", files=upload)
            if response.status_code == 201:
                acknowledged["documents"].append((tenant, f"{name}.md"))
            job = {"kind": "train", "name": name, "data": rows}
            response = await client.post("/v1/jobs", json=job)
            if response.status_code in (200, 201, 202):
                acknowledged["jobs"].append((tenant, response.json()["id"]))
            elif response.status_code != 429:
                run.wrong.append(f"job: {response.status_code} {response.text[:300]}")
            acknowledged["keys"].append((tenant, server.keys.add(tenant, "user")[0]))

    tasks = [asyncio.create_task(keep(tenant, number)) for number, tenant in enumerate(("main", "red", "main", "red"))]
    tasks += [asyncio.create_task(run.load(10**6))]
    await asyncio.sleep(12)
    server.kill()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await run.close()
    await asyncio.to_thread(server.start)
    missing = list[str]()
    clients = {tenant: server.client(tenant) for tenant in TENANTS}
    for tenant, (name, id) in acknowledged["adapters"]:
        for file, content in contents.files[id].items():
            response = await clients[tenant].get(f"/v1/adapters/{name}/files/{file}")
            if response.content != content:
                missing.append(f"adapter {name} {file}: {response.status_code}")
    for tenant in TENANTS:
        documents = (await clients[tenant].get("/v1/collections/doors/documents")).json()["data"]
        jobs = (await clients[tenant].get("/v1/jobs")).json()["data"]
        there = {entry["id"] for entry in documents} | {entry["id"] for entry in jobs}
        wanted = [*acknowledged["documents"], *acknowledged["jobs"]]
        missing += [f"{tenant} {id}" for owner, id in wanted if owner == tenant and id not in there]
    for _, text in acknowledged["keys"]:
        response = await clients["main"].get("/v1/models", headers={"authorization": f"Bearer {text}"})
        if response.status_code != 200:
            missing.append(f"a key: {response.status_code}")
    for client in clients.values():
        await client.aclose()
    refused = [line for line in run.wrong if line.startswith("job:")]
    return {"acknowledged": {what: len(those) for what, those in acknowledged.items()}, "missing": missing + refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2400, help="every sixth is a change")
    parser.add_argument("--kinds", type=int, default=200)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "serving_exactness.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_base(work / "base")
        contents, server = Contents(work / "base", work / "contents"), Server(work)
        server.start()
        try:
            result: dict[str, Any] = {"setup": setup("halka", "torch", "transformers", "fastapi", "uvicorn")}
            result |= asyncio.run(answered(server, contents, arguments.requests, arguments.kinds, arguments.seed))
            print(json.dumps({**result, "wrong": result["wrong"][:10]}, indent=1), flush=True)
            result["kills"] = []
            for seed in range(arguments.kills):
                result["kills"].append(asyncio.run(killed(server, contents, seed)))
                print(json.dumps(result["kills"][-1]), flush=True)
            result["exit_code"] = server.stop()
        finally:
            if server.process is not None and server.process.poll() is None:
                server.kill()
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
