"""`Process`: one vLLM process, at its address: whether it can be asked, the LoRAs that it has, a stream of events."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from anyio import to_thread

from halka.core import AdaptedModel
from halka.server.backends.vllm.base_check import OtherBase, Probe, Served, check_base, message_of
from halka.server.backends.vllm.events import Event, data_of, read_event
from halka.util.errors import HalkaError
from halka.util.text import fits_header

KEY = "VLLM_API_KEY"
CONNECT = 5.0  # seconds
CHECK = 30.0  # seconds for each answer to a check
IDLE = 10.0  # seconds: no vLLM is started again faster
KEPT = 2.0  # seconds that a connection is kept unused: vLLM closes it after 5, perhaps just when it is used again
GARBAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError)  # of an answer that is not vLLM's
BROKEN = ("abort", "error")  # reasons for an answer's end that are none
PAUSE = 2.0  # seconds between two checks of a process that fails them
log = logging.getLogger("halka.server")


class Unavailable(Exception):
    """The process cannot be asked now, or broke off: why, for the log."""


class Refused(Exception):
    """The process does not take a request: why, in words that may quote it."""


class LoraUnseen(Refused):
    """The process does not see a LoRA's folder: why."""


class LoraRefused(Refused):
    """The process does not take a LoRA, and never will: why."""


class Forgotten(Exception):
    """The process does not have the LoRA, or the base of that name: it was started again."""


class Process:
    """One vLLM process.

    url         where it is
    served      what it serves, as it was checked; None: it is checked before the next request
    loaded      the LoRAs that it has of ours, by name
    users       requests under way, by the LoRA that they need; None: the bare base
    idle        seconds without a word after which it is checked again: perhaps it was started again meanwhile
    """

    def __init__(self, url: str, probe: Probe, timeout: float):
        key = api_key()
        self.url, self.idle = url.rstrip("/"), IDLE
        self.served: Served | None = None
        self.loaded, self.users = set[str](), Counter[str | None]()
        self._probe, self._problem, self._again, self._heard = probe, "", 0.0, 0.0
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": {"authorization": f"Bearer {key}"} if key else {},
            "trust_env": False,
        }
        self._client = httpx.AsyncClient(
            **self._options,
            timeout=httpx.Timeout(0.9 * timeout, connect=CONNECT, pool=None),  # before the server ends the request
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEPT),
        )
        self._check_timeout = httpx.Timeout(min(timeout, CHECK), connect=CONNECT)
        self._check: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    @property
    def busy(self) -> int:
        """How many requests are under way."""
        return self.users.total()

    def client(self) -> httpx.Client:
        """A client for threads."""
        return httpx.Client(**self._options, timeout=self._check_timeout)

    # ── whether it can be asked ─────────────────────────────────────────────────────────────────────────────────

    def check(self) -> Served:
        """Compare its base with ours, and see which LoRAs it has. Raises Unavailable."""
        return self._take(self._compared())

    async def ready(self) -> Served:
        """What it serves; checked now, where it was away or idle. Raises Unavailable."""
        if self._doubtful:
            self.look()
            if self._check is not None:
                await asyncio.shield(self._check)  # others wait for it, too
        if self.served is None:
            raise Unavailable(self._problem)
        return self.served

    def look(self) -> None:
        """Begin to check it where it is away or idle, unless it has failed a moment ago."""
        if self._doubtful and self._check is None and time.monotonic() >= self._again:
            self._check = asyncio.get_running_loop().create_task(self._check_in_thread())

    def turn(self, lora: str | None) -> tuple[bool, float, int, bool]:
        """The process whose turn is the least is asked first: it is there, has little to do, and has the LoRA."""
        return self.served is None, self._again, self.busy, lora not in self.loaded

    @property
    def _doubtful(self) -> bool:
        return self.served is None or (not self.busy and time.monotonic() > self._heard + self.idle)

    async def _check_in_thread(self) -> None:
        try:
            served = await to_thread.run_sync(self._compared, abandon_on_cancel=True)
            self._take(served)
        except Unavailable as error:
            self._away(error)
            self._again = time.monotonic() + PAUSE
        finally:
            self._check = None

    def _compared(self) -> Served:
        try:
            with self.client() as client:
                return check_base(client, self._probe)
        except OtherBase as error:
            raise Unavailable(str(error)) from None
        except httpx.HTTPError as error:
            raise _broken(error) from None
        except GARBAGE as error:
            raise Unavailable(f"it does not answer as vLLM does: {_broken(error)}") from None

    def _take(self, served: Served) -> Served:
        self.served, self._again, self._heard = served, 0.0, time.monotonic()
        self.loaded &= served.adapters.keys()
        return served

    def _away(self, error: Exception) -> Exception:
        """Log `error` and return it; the process is checked before it is asked again."""
        self.served, self._problem = None, str(error)
        log.error("a vLLM process cannot be asked", extra={"fields": {"vllm": self.url, "reason": str(error)}})
        return error

    # ── its LoRAs ───────────────────────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def using(self, lora: str | None, folder: Path) -> AsyncIterator[None]:
        """Within the block it has this LoRA of the folder. Raises Unavailable, or Refused."""
        self.users[lora] += 1
        try:
            if lora is not None and lora not in self.loaded:
                async with self._changing:
                    if lora not in self.loaded:
                        await self._load(lora, str(folder / lora))
            yield
        finally:
            self.users[lora] -= 1
            if not self.users[lora]:
                del self.users[lora]

    def forget(self, lora: str | None) -> None:
        """It was started again: it has nothing of ours, and perhaps another base."""
        self.loaded.discard(lora or "")
        self.served = None

    @property
    def needed(self) -> set[str]:
        """The LoRAs of ours that it has, or is about to have."""
        return self.loaded | {lora for lora in self.users if lora is not None}

    def unwanted(self, wanted: Container[str]) -> list[str]:
        """Its LoRAs that no name means any more, and no answer needs."""
        return [lora for lora in self.loaded if lora not in wanted and not self.users[lora]]

    async def unload(self, wanted: Container[str]) -> None:
        """Let it have no LoRA that is unwanted; what is wanted may change meanwhile."""
        async with self._changing:
            while unwanted := self.unwanted(wanted):
                self.loaded.discard(unwanted[0])  # a request that needs it again waits, and loads it
                try:
                    await self._client.post("/v1/unload_lora_adapter", json={"lora_name": unwanted[0]})
                except httpx.HTTPError as error:
                    self._away(_broken(error))
                    return

    async def _load(self, lora: str, folder: str) -> None:
        try:
            response = await self._client.post("/v1/load_lora_adapter", json={"lora_name": lora, "lora_path": folder})
            status, message = response.status_code, message_of(response)
            if status == 404:
                raise LoraUnseen(f"vLLM does not see {folder}: name a folder that both see with vllm_folder")
            if status != 200 and "already been loaded" not in message:  # equal names have equal content
                if status not in (400, 500):
                    raise self._away(Unavailable(f"{status}: {message}"))
                (await self._client.get("/health")).raise_for_status()
                raise LoraRefused(f"vLLM does not load it: {message}")
        except httpx.HTTPError as error:
            raise self._away(_broken(error)) from None
        self.loaded.add(lora)

    # ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def events(self, body: dict[str, Any]) -> AsyncGenerator[Event]:
        """What it says to a request, event by event. Whoever stops reading ends its work.

        Raises Refused for what it does not take, Forgotten for a LoRA that it does not have, Unavailable.
        """
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code != 200:
                    await response.aread()
                    raise self._error(response)
                async for data in data_of(response.aiter_bytes()):
                    if data == b"[DONE]":
                        return
                    event = read_event(data, body["n"])
                    reasons = {choice.finish_reason for choice in event.choices}
                    if event.error is not None or not reasons.isdisjoint(BROKEN):
                        raise self._away(Unavailable("it broke off an answer"))
                    self._heard = time.monotonic()
                    yield event
            raise self._away(Unavailable("its answer has no end"))
        except (httpx.HTTPError, ValueError) as error:
            raise self._away(_broken(error)) from None

    def _error(self, response: httpx.Response) -> Exception:
        reason = f"{response.status_code}: {message_of(response)}"
        if response.status_code == 404:
            return Forgotten(reason)
        if response.status_code in (400, 413, 422):
            return Refused(f"vLLM refuses it: {reason}")
        return self._away(Unavailable(reason))

    async def aclose(self) -> None:
        if self._check is not None:
            self._check.cancel()
        await self._client.aclose()


def open_processes(urls: Sequence[str], model: AdaptedModel, folder: Path, timeout: float) -> list[Process]:
    """The processes at these addresses, rid of the LoRAs that a server before this one left in the folder.

    Raises HalkaError for one that is not there, or whose base is not the model's.
    """
    processes, probe = list[Process](), Probe.of(model) if urls else None
    for url in urls:
        assert probe is not None
        process = Process(url, probe, timeout)
        try:
            adapters = process.check().adapters
            with process.client() as client:
                for name in [name for name, path in adapters.items() if Path(path).parent == folder]:
                    client.post("/v1/unload_lora_adapter", json={"lora_name": name})
        except (Unavailable, httpx.HTTPError) as error:
            raise HalkaError(f"vLLM at {url}: {error}") from None
        processes.append(process)
    return processes


def api_key() -> str:
    """vLLM's key. Raises HalkaError, without it, for what no header can hold: errors of headers would quote it."""
    key = os.environ.get(KEY, "").strip()
    if not fits_header(key):
        raise HalkaError(f"{KEY} has characters that no header can have: set it to vLLM's --api-key")
    return key


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"{type(error).__name__}: {error}".rstrip(": "))
