"""A server of bare routes, in a process of its own: `python bare_server.py FOLDER PATIENCE` prints its port."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from guarded_for_tests import Guarded
from halka.server.guards.logs import log_to
from halka.server.uvicorn_server import server

if __name__ == "__main__":
    guarded = Guarded(Path(sys.argv[1]), body_size=0.001)
    log_to(sys.stderr, texts=False)
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    server(guarded.app, guarded.guards.drain, 20.0, float(sys.argv[2])).run(sockets=[listening])
