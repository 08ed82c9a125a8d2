"""`halka serve`: OpenAI's API over a base, its adapters and documents, until it is stopped."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halka.cli.command import examples, say, terminated_as_interrupted
from halka.cli.setting_flags import Deferred, command_of, flag, setting_flag
from halka.util.errors import HalkaError
from halka.util.malloc import bound_arenas

if TYPE_CHECKING:
    from halka.server.settings import ServerSettings

EXAMPLES = examples(
    "halka serve --base smollm2-135m",
    "halka serve --base smollm2-135m --store adapters --collections collections",
    "halka serve --config serve.yaml --port 9000",
    "halka serve --base smollm2-135m --store adapters --on ray --replicas 1-4",
    "halka serve --base smollm2-135m --store adapters --vllm http://127.0.0.1:8001 --device cpu",
)


def serve() -> None:
    """Serve a base, its adapters and documents over OpenAI's API.

    Clients name an adapter as their model. Without keys (`halka keys`) only this machine may call. Every setting may
    stand in a YAML file (--config), in the environment, and on the command line, each overriding the one before:
    `rows: 8`, HALKA_SERVE_ROWS=8, --rows 8.
    """


class Serve(Deferred):
    def whole(self) -> Any:
        from halka.server.settings import ServerSettings
        from halka.util.settings import build, from_environment, from_file, from_flags, settings_of

        settings = settings_of(ServerSettings, command="serve")

        def run(config: Path | None, **values: Any) -> None:
            layer = from_file(config, settings) if config is not None else {}
            layer |= from_environment(os.environ, settings) | from_flags(values, settings)
            _serve(build(ServerSettings, settings, layer))

        config = flag("config", Path | None, None, metavar="FILE", help="a YAML file with settings")
        flags = [setting_flag(setting, "Settings") for setting in settings.values()]
        return command_of("serve", run, [*flags, config], serve.__doc__, EXAMPLES)


def _serve(settings: ServerSettings) -> None:
    bound_arenas()
    try:
        from halka.server.guards.access import check_host
        from halka.server.guards.keys import Keys

        check_host(settings.host, Keys(settings.data / "keys.json"))  # what follows loads torch
        from halka.server.app import create_app
        from halka.server.guards.logs import log_to
        from halka.server.service import Service
        from halka.server.uvicorn_server import server
    except ModuleNotFoundError as error:
        if error.name in ("fcntl", "resource"):
            raise HalkaError(
                f"a server needs Linux or macOS (Python has no {error.name} here): on Windows use WSL"
            ) from None
        if (error.name or "halka").startswith("halka") or error.name in sys.stdlib_module_names:
            raise
        raise HalkaError(f"{error.name} is missing: pip install 'halka[server]'") from None

    with terminated_as_interrupted(), _listening(settings.host, settings.port) as listening, ExitStack() as opened:
        say(f"loading {settings.base}{', here and on the Ray cluster' if settings.on else ''} …")
        service = Service.open(settings)
        opened.callback(service.close)
        host, port = listening.getsockname()[:2]
        say(_ready(service, f"http://{f'[{host}]' if ':' in host else host}:{port}"))
        log_to(sys.stderr, settings.log_prompts)
        app, drain = create_app(service), service.guards.drain
        server(app, drain, settings.drain).run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket at this address, so that it is this server's before the base is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise HalkaError(
            f"nothing can listen at {host}, port {port} ({(error.strerror or str(error)).lower()}): choose another "
            "--host or --port"
        ) from None


def _ready(service: Any, url: str) -> str:
    """Where the server is, what it serves, and how it is asked."""
    adapters = service.tenants.of("main").store.names()
    shown = ", ".join(adapters[:5]) + (f" and {len(adapters) - 5} more" if len(adapters) > 5 else "")
    body = {"model": adapters[0] if adapters else service.name, "messages": [{"role": "user", "content": "Hello!"}]}
    curl = ["curl", f"{url}/v1/chat/completions", "-H", "content-type: application/json", "-d", json.dumps(body)]
    key = ' -H "Authorization: Bearer $HALKA_API_KEY"' if service.guards.keys.required else ""
    return "\n".join(
        [
            f"{service.name}{f', with {shown},' if shown else ''} answers at {url}/v1, and in a browser "
            f"at {url}/ (Ctrl-C stops it). For example:",
            f"  {shlex.join(curl)}{key}",
        ]
    )
