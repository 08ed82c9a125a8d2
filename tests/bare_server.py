"""A server of bare routes, in a process of its own, which prints its port, and what the routes see happen:

python bare_server.py FOLDER TIMEOUT DRAIN CONNECTIONS

It needs no torch, and so begins at once.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from guarded_for_tests import Guarded
from halka.server.guards.logs import log_to
from halka.server.uvicorn_server import server


class Printed(list[str]):
    def append(self, event: str) -> None:
        print(event, flush=True)


if __name__ == "__main__":
    folder, timeout, seconds, connections = sys.argv[1:]
    nobody_stores: Any = SimpleNamespace(reserve=None)
    guarded = Guarded(Path(folder), nobody_stores, body_size=0.001)
    guarded.events = Printed()
    assert "torch" not in sys.modules
    log_to(sys.stderr, texts=False)
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    drain = guarded.guards.drain
    server(guarded.app, drain, float(seconds), float(timeout), int(connections)).run(sockets=[listening])
