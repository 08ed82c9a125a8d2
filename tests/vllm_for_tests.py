"""A stand-in for `vllm serve --enable-lora`: its routes, errors and events as vLLM 0.32 has them, over a tiny base.

Answers are greedy, by whole passes of the base, with penalties, bias and ends as vLLM documents them; it draws nothing.
A request must name every setting: for others vLLM has defaults of its own, from the base. What vLLM refuses and says
was read in its source, entrypoints/openai/completion and models, and entrypoints/serve/lora, and seen at its CPU build.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import halka

SETTINGS = {
    *("n", "max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "logprobs", "stop", "stop_token_ids"),
    *("ignore_eos", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "cache_salt"),
}


class StandIn:
    """A vLLM process at a port of its own, which a test can break.

    loras       those that are loaded, with their folders
    asked       the bodies of completions, in order
    log         what happened: "load NAME", "unload NAME", "left"
    pause       seconds between two tokens
    shift       is added to the log probabilities of prompts: another base has others
    tokens_off  is added to the ids of a text's tokens: another tokenizer has others
    most_rank   as --max-lora-rank
    fails       tokens after which an answer breaks off; None: it does not
    models      what it says that it serves, in the place of what it does
    garbage     what it says in the place of an answer
    key         as --api-key
    hangs       whether it takes requests, and says nothing
    loading     the status with which it takes no LoRA; None: it takes them
    cut         whether an answer has no usage after it, and no end
    runtime     as VLLM_ALLOW_RUNTIME_LORA_UPDATING
    """

    def __init__(self, base: Path, longest: int = 512):
        self.base, self.longest = base, longest
        self.model = halka.adapt(*halka.load_base(base, dtype="float32"))
        self.loras, self.asked, self.log = dict[str, str](), list[dict[str, Any]](), list[str]()
        self.pause, self.shift, self.tokens_off, self.most_rank = 0.0, 0.0, 0, 16
        self.fails: int | None = None
        self.garbage, self.cut, self.hangs = b"", False, False
        self.loading: int | None = None
        self.key: str | None = None
        self.models: list[Any] | None = None
        self.runtime, self.enabled = True, True

    def __enter__(self) -> StandIn:
        self._kept = socket.socket()  # nobody listens there: it keeps the port from others until the next start
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._kept.bind(("127.0.0.1", 0))
        self._port = self._kept.getsockname()[1]
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._kept.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        listening = socket.create_server(("127.0.0.1", self._port), reuse_port=True)
        routes = [
            Route("/health", lambda _: Response()),
            Route("/v1/models", self._models),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        if self.runtime:
            routes.append(Route("/v1/load_lora_adapter", self._load, methods=["POST"]))
            routes.append(Route("/v1/unload_lora_adapter", self._unload, methods=["POST"]))
        missing = {404: lambda *_: JSONResponse({"detail": "Not Found"}, 404)}
        routed = Starlette(routes=routes, exception_handlers=missing)  # type: ignore[arg-type]

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if self.hangs:
                await asyncio.sleep(3600)
            known = self.key is None or (b"authorization", b"Bearer " + self.key.encode()) in scope["headers"]
            await (routed if known else JSONResponse({"error": "Unauthorized"}, 401))(scope, receive, send)

        self._server = uvicorn.Server(
            uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()
        begun = time.monotonic()
        while not self._server.started:
            assert time.monotonic() < begun + 120, "the stand-in does not start"
            time.sleep(0.005)
        self._listening = listening

    def stop(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join()
        self._listening.close()

    def restart(self) -> None:
        """As the process does after a crash: it has no LoRA."""
        self.stop()
        for name in [*self.loras]:
            self._forget(name)
        self.start()

    def _forget(self, name: str) -> None:
        del self.loras[name]
        self.model.remove(name)

    # ── routes ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _models(self, request: Request) -> Response:
        if self.models is not None:
            return JSONResponse({"data": self.models})
        base = {"id": "the-base", "object": "model", "root": str(self.base), "parent": None}
        loras = [{"id": name, "root": path, "parent": "the-base"} for name, path in self.loras.items()]
        return JSONResponse({"object": "list", "data": [{**base, "max_model_len": self.longest}, *loras]})

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        tokens = self.model.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
        return JSONResponse({"tokens": [token + self.tokens_off for token in tokens], "count": len(tokens)})

    async def _load(self, request: Request) -> Response:
        body = await request.json()
        name, folder = body["lora_name"], Path(body["lora_path"])
        if self.loading is not None:
            return _error(self.loading, "not now")
        if name in self.loras:
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not self.enabled:
            return _error(500, "Call to add_lora method failed: LoRA is not enabled. Use --enable-lora to enable LoRA.")
        if not folder.is_dir():
            return _error(404, f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError")
        config = json.loads((folder / "adapter_config.json").read_text())
        if config["r"] > self.most_rank:
            why = f"LoRA rank {config['r']} is greater than max_lora_rank {self.most_rank}."
            return _error(500, f"Call to add_lora method failed: {why}")
        self.log.append(f"load {name}")
        halka.load(self.model, folder, name=name)
        self.loras[name] = str(folder)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name not in self.loras:
            return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        self.log.append(f"unload {name}")
        self._forget(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        name, prompt = body["model"], body["prompt"]
        if name != "the-base" and name not in self.loras:
            return _error(404, f"The model `{name}` does not exist.", "NotFoundError")
        if len(prompt) + body["max_tokens"] > self.longest:
            return _error(400, f"This model's maximum context length is {self.longest} tokens.", "BadRequestError")
        if not body["temperature"] and body.get("n", 1) > 1:
            return _error(400, "n must be 1 when using greedy sampling, got 2.", "BadRequestError")
        lora = None if name == "the-base" else name
        if body.get("echo"):
            logprobs = self._logits(lora, prompt).log_softmax(-1)
            own = [float(row[token]) + self.shift for row, token in zip(logprobs, prompt[1:], strict=False)]
            return JSONResponse({"choices": [{"index": 0, "logprobs": {"token_logprobs": [None, *own, -1.0]}}]})
        assert body.keys() >= SETTINGS, f"vLLM would take its own {SETTINGS - body.keys()}"
        self.asked.append(body)
        if body["prompt"] == [3, 3, 3]:
            return _error(400, "it does not like threes", "BadRequestError")
        return StreamingResponse(self._stream(body, lora), media_type="text/event-stream")

    async def _stream(self, body: dict[str, Any], lora: str | None) -> AsyncIterator[str]:
        tokens = [*body["prompt"]]
        if self.garbage:
            yield self.garbage.decode()
            return
        yield ": keep-alive\n\n"
        try:
            for count in range(body["max_tokens"]):
                if self.fails == count:
                    yield _event({"error": {"message": "EngineCore died", "code": 500}})
                    yield "data: [DONE]\n\n"
                    return
                logits = self._logits(lora, tokens)[-1]
                written = tokens[len(body["prompt"]) :]
                tokens.append(token := _likeliest(logits, written, body))
                ends = {*body["stop_token_ids"], *(() if body["ignore_eos"] else self._ends)}
                text = self.model.tokenizer.decode([*written, token]).rstrip("\ufffd")  # half a letter
                stop = token in ends or any(string in text for string in body["stop"])
                finish = "stop" if stop else "length" if count + 1 == body["max_tokens"] else None
                for index in range(body["n"]):
                    choice = {
                        "index": index,
                        "text": "not\u2028read\x85",
                        "finish_reason": finish,
                        "token_ids": [token],
                    }
                    choice["logprobs"] = (
                        None if body["logprobs"] is None else _logprobs(logits, token, body["logprobs"])
                    )
                    yield _event({"choices": [choice]})
                if finish is not None:
                    break
                await asyncio.sleep(self.pause)
            if self.cut:
                return
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(tokens) - len(body["prompt"])}
            yield _event({"choices": [], "usage": usage | {"prompt_tokens_details": {"cached_tokens": 2}}})
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.log.append("left")
            raise

    @property
    def _ends(self) -> set[int]:
        return {self.model.tokenizer.eos_token_id}

    def _logits(self, lora: str | None, tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode(), self.model.use(lora):
            return self.model.base(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()


def _likeliest(logits: torch.Tensor, written: list[int], body: dict[str, Any]) -> int:
    """The next token: presence and frequency are those in the answer alone, repetitions those of the prompt, too."""
    logits = logits.clone()
    for token, bias in (body["logit_bias"] or {}).items():
        logits[int(token)] += bias
    repeated = torch.tensor([*{*body["prompt"], *written}])
    penalty, before = body["repetition_penalty"], logits[repeated]
    logits[repeated] = torch.where(before < 0, before * penalty, before / penalty)
    counts = torch.bincount(torch.tensor(written, dtype=torch.long), minlength=len(logits))
    logits = logits - body["frequency_penalty"] * counts - body["presence_penalty"] * (counts > 0)
    return int(logits.argmax())


def _logprobs(logits: torch.Tensor, token: int, top: int) -> dict[str, Any]:
    """The token itself first, then the likeliest."""
    logprobs = logits.log_softmax(-1)
    ids = dict.fromkeys([token, *logprobs.topk(top).indices.tolist()])
    named = {f"token_id:{id}": float(logprobs[id]) for id in ids}
    return {"tokens": [f"token_id:{token}"], "token_logprobs": [float(logprobs[token])], "top_logprobs": [named]}


def _event(event: dict[str, Any]) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


def _error(status: int, message: str, kind: str = "InternalServerError") -> Response:
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
