"""What a request says of the page that sent it: its browser adds the session's cookie to whatever any page sends, so
what is unsafe needs more: a header that no form has, and the browser's word that the page is the server's own.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import Scope

from halka.server.errors import ApiError

PAGE = "x-halka-page"
"""The header that the server's page sends; another page's request would have to be asked for first, and is refused."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})


def check_page(scope: Scope) -> None:
    """Raises ApiError unless the server's own page sent the request, as far as its browser says."""
    if values_of(scope, PAGE.encode()) != [b"1"]:
        raise ApiError(403, "with a session's cookie this needs the header X-Halka-Page: 1", code="no_page")
    sites, origins, hosts = (values_of(scope, name) for name in (b"sec-fetch-site", b"origin", b"host"))
    own = (
        sites == [b"same-origin"] if sites else len(origins) == 1 and [_place(origins[0])] == [*map(bytes.lower, hosts)]
    )
    if not own:
        raise ApiError(403, "with a session's cookie this is for the server's own page alone", code="wrong_origin")


def over_tls(scope: Scope) -> bool:
    """Whether the browser came by https, to the server or to a proxy before it: its page's origin says so."""
    return scope.get("scheme") == "https" or any(value.startswith(b"https://") for value in values_of(scope, b"origin"))


def values_of(scope: Scope, name: bytes) -> list[bytes]:
    """The values of a request's header."""
    return [value for header, value in scope["headers"] if header == name]


def _place(origin: bytes) -> bytes:
    """An origin's host and port."""
    try:
        return urlsplit(origin.lower()).netloc
    except ValueError:
        return b""
