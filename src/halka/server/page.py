"""The page's files, as `scripts/page` builds them, with headers that let it load and call nothing but its own server.

They hold no data, so that they need no key: a browser gets them before anybody signs in.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from halka.server.errors import ApiError

BUILT = Path(__file__).parent / "web" / "built"
SCREENS = ("playground", "train", "adapters", "compare", "documents", "advise", "account")
"""The first parts of the page's own addresses, as `web/src/screens/screens.ts` lists them."""
ADDRESS = re.compile(rf"/|/(?:{'|'.join(SCREENS)})(?:/.*)?|/assets/[A-Za-z0-9_.-]+")
POLICY = "; ".join(
    [
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "font")),
        "img-src 'self' data:",
        *(f"{what} 'none'" for what in ("form-action", "frame-ancestors", "base-uri")),
    ]
)
UNUSED = ("accelerometer", "camera", "display-capture", "geolocation", "gyroscope", "microphone", "payment", "usb")
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": ", ".join(f"{feature}=()" for feature in UNUSED),
    "vary": "accept-encoding",
}
"""Those of the page, beside what `Edge` gives every response."""
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOR_GOOD = "public, max-age=31536000, immutable"  # the name of a file changes with its content


def is_page(path: str) -> bool:
    """Whether a path is the page's: a screen, however deep the link, or one of its files."""
    return ADDRESS.fullmatch(path) is not None


@dataclass(frozen=True)
class BuiltFile:
    """A file of the build, in memory."""

    content: bytes
    type: str
    caching: str

    @classmethod
    def read(cls, path: Path, caching: str) -> BuiltFile:
        return cls(path.read_bytes(), TYPES[path.suffix], caching)

    @cached_property
    def compressed(self) -> bytes:
        return gzip.compress(self.content, mtime=0)

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    def response(self, request: HttpRequest) -> Response:
        """The file, compressed for who takes that; 304 for who has it."""
        headers = HEADERS | {"cache-control": self.caching, "etag": self.etag}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if not re.search(r"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?(?:,|\s|$))", request.headers.get("accept-encoding", "")):
            return Response(self.content, headers=headers, media_type=self.type)
        headers["content-encoding"] = "gzip"
        return Response(self.compressed, headers=headers, media_type=self.type)


def page_router(folder: Path = BUILT) -> APIRouter:
    """Routes of the page that was built into a folder; without one they say how it is built."""
    files = {path.name: BuiltFile.read(path, FOR_GOOD) for path in folder.glob("assets/*")}
    index = BuiltFile.read(folder / "index.html", "no-cache") if (folder / "index.html").is_file() else None
    router = APIRouter(include_in_schema=False)

    async def screen(request: HttpRequest) -> Response:
        if index is None:
            raise ApiError(404, "the page is not built: run scripts/page, which needs Node.js", code="page_not_built")
        return index.response(request)

    async def asset(file: str, request: HttpRequest) -> Response:
        if file not in files:
            raise ApiError(404, "the page has no such file: it was built anew, load it again")
        return files[file].response(request)

    for path in ("/", *(f"/{name}{rest}" for name in SCREENS for rest in ("", "/{rest:path}"))):
        router.add_api_route(path, screen, methods=["GET", "HEAD"])
    router.add_api_route("/assets/{file}", asset, methods=["GET", "HEAD"])
    return router
