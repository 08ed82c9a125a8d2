"""`Sessions`: a page is signed in by a cookie, which stands for a key until one of them ends.

They are in memory alone, by the hashes of their cookies. A browser adds its cookie to whatever any page sends, so
what is unsafe needs more (`check_page`): a header that no form has, and the browser's word that the page is its own.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from starlette.types import Scope

from halka.server.errors import ApiError
from halka.server.guards.keys import Key, Keys
from halka.server.guards.limits import Attempts

COOKIE = "halka-session"
PAGE = "x-halka-page"
"""The header that the server's page sends; another page's request would have to be asked for first, and is refused."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
LIFE = timedelta(hours=12)
MOST = 16  # sessions of a key; the oldest ends
LONG = 64  # characters of a cookie; a server's has 43


@dataclass(frozen=True)
class Session:
    """How long a cookie, whose hash is `id`, stands for a key, which was so when it began."""

    id: str
    key: Key
    ends: datetime


class Sessions:
    """The sessions of a server, which end with it."""

    def __init__(self, keys: Keys, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._keys, self._clock = keys, clock
        self._sessions: dict[str, Session] = {}
        self._attempts = Attempts()

    def begin(self, text: str, address: str) -> tuple[str, Session, Key]:
        """A session for the key with this text: its cookie, which is nowhere else, itself and the key.

        Raises ApiError for a wrong key, and for any where this address sent too many wrong ones.
        """
        self._attempts.check(address)
        if (key := self._keys.find(text.strip().encode())) is None:
            self._attempts.count(address)
            raise unauthorized("the API key is wrong, revoked or has expired", "invalid_api_key")
        self._sessions = {id: session for id, session in self._sessions.items() if self.valid(session)}
        own = [session.id for session in self._sessions.values() if session.key.hash == key.hash]
        for id in own[: max(0, len(own) + 1 - MOST)]:
            self.end(id)
        ends = self._clock().replace(microsecond=0) + LIFE
        ends = ends if key.expires is None else min(ends, key.expires)
        session = Session(_hash(cookie := secrets.token_urlsafe(32)), key, ends)
        self._sessions[session.id] = session
        return cookie, session, key

    def find(self, cookie: str) -> tuple[Session, Key]:
        """The session of a cookie, and its key as it is now. Raises ApiError where one of them has ended."""
        session = self._sessions.get(_hash(cookie))
        if session is None or (key := self._key(session)) is None:
            raise unauthorized("the session has ended: sign in again", "session_ended")
        return session, key

    def valid(self, session: Session) -> bool:
        """Whether neither it nor its key has ended."""
        return self._sessions.get(session.id) == session and self._key(session) is not None

    def end(self, id: str) -> None:
        self._sessions.pop(id, None)

    def _key(self, session: Session) -> Key | None:
        """Its key as it is now, if both go on."""
        key = self._keys.all().get(session.key.id)
        ended = key is None or key.hash != session.key.hash or key.expired or session.ends <= self._clock()
        return None if ended else key


def cookie_of(scope: Scope) -> str | None:
    """The session's cookie that a request has. Raises ApiError for several, of which one may be somebody else's."""
    pairs = [pair.strip().partition(b"=") for value in values_of(scope, b"cookie") for pair in value.split(b";")]
    cookies = [value for name, _, value in pairs if name == COOKIE.encode()]
    if len(cookies) > 1 or any(len(cookie) > LONG for cookie in cookies):
        raise unauthorized(f"the cookie {COOKIE} is there twice, or is none of this server's", "session_ended")
    return cookies[0].decode("latin-1") if cookies else None


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
    return scope["scheme"] == "https" or any(value.startswith(b"https://") for value in values_of(scope, b"origin"))


def unauthorized(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})


def values_of(scope: Scope, name: bytes) -> list[bytes]:
    """The values of a request's header."""
    return [value for header, value in scope["headers"] if header == name]


def _place(origin: bytes) -> bytes:
    """An origin's host and port."""
    try:
        return urlsplit(origin.lower()).netloc
    except ValueError:
        return b""


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
