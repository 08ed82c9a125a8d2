"""`Sessions`: a page is signed in by a cookie, which stands for a key until one of them ends.

They are in memory alone, by the hashes of their cookies.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from starlette.types import Scope

from halka.server.errors import ApiError
from halka.server.guards.browser import over_tls, values_of
from halka.server.guards.keys import Key, Keys
from halka.server.guards.limits import Bucket, too_soon

COOKIE = "halka-session"
SECURE = f"__Host-{COOKIE}"
"""The cookie's name where the page came by https: browsers take it from this very host alone, not from its siblings."""
WRONG, ADDRESSES = 30, 10_000  # wrong keys a minute from one address, and the addresses that are remembered
LIFE = timedelta(hours=12)
MOST = 16  # sessions of a key; the oldest ends
LONG = 64  # characters of a cookie; a server's has 43


@dataclass(frozen=True)
class Session:
    """How long a cookie, whose hash is `id`, stands for a key, which was so when it began."""

    id: str
    key: Key
    ends: datetime


class Attempts:
    """Counts wrong keys by the address that they come from, up to so many a minute.

    Right ones are not its business: behind a proxy all have one address.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._buckets, self._clock = OrderedDict[str, Bucket](), clock

    def count(self, address: str) -> None:
        """Count a wrong key. Raises ApiError where too many came from there."""
        bucket = self._buckets.setdefault(address, Bucket(WRONG, self._clock))
        self._buckets.move_to_end(address)
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        if wait := bucket.wait(1):
            raise too_soon(f"{bucket.amount} wrong keys a minute is the limit of an address", wait)
        bucket.take(1)


class Sessions:
    """The sessions of a server, which end with it, and the `attempts` to guess a key."""

    def __init__(self, keys: Keys, clock: Callable[[], datetime] = lambda: datetime.now(UTC)):
        self._keys, self._clock = keys, clock
        self._sessions: dict[str, Session] = {}
        self.attempts = Attempts()

    def key(self, text: str, address: str) -> Key:
        """The key with this text. Raises ApiError for a wrong one, 429 where this address sent too many of these."""
        if (key := self._keys.find(text.strip().encode())) is None:
            self.attempts.count(address)
            raise unauthorized("the API key is wrong, revoked or has expired", "invalid_api_key")
        return key

    def begin(self, key: Key) -> tuple[str, Session]:
        """A session for this key: its cookie, which is nowhere else, and itself."""
        keys = self._keys.all()
        self._sessions = {id: session for id, session in self._sessions.items() if self._key(session, keys)}
        own = [session.id for session in self._sessions.values() if session.key.hash == key.hash]
        for id in own[: max(0, len(own) + 1 - MOST)]:
            self.end(id)
        ends = self._clock().replace(microsecond=0) + LIFE
        ends = ends if key.expires is None else min(ends, key.expires)
        session = Session(_hash(cookie := secrets.token_urlsafe(32)), key, ends)
        self._sessions[session.id] = session
        return cookie, session

    def find(self, cookie: str) -> tuple[Session, Key]:
        """The session of a cookie, and its key as it is now. Raises ApiError where one of them has ended."""
        session = self._sessions.get(_hash(cookie))
        if session is None or (key := self._key(session, self._keys.all())) is None:
            raise unauthorized("the session has ended: sign in again", "session_ended")
        return session, key

    def valid(self, session: Session) -> bool:
        """Whether neither it nor its key has ended."""
        return self._sessions.get(session.id) == session and self._key(session, self._keys.all()) is not None

    def end(self, id: str) -> None:
        self._sessions.pop(id, None)

    def _key(self, session: Session, keys: Mapping[str, Key]) -> Key | None:
        """Its key as it is now, if both go on."""
        key = keys.get(session.key.id)
        ended = key is None or key.hash != session.key.hash or key.expired or session.ends <= self._clock()
        return None if ended else key


def cookie_name(tls: bool) -> str:
    return SECURE if tls else COOKIE


def cookie_of(scope: Scope) -> str | None:
    """The session's cookie that a request has; beside the one of https the plain one, which a sibling may set, is none.

    Raises ApiError for several of one name, of which one may be somebody else's.
    """
    pairs = [pair.strip().partition(b"=") for value in values_of(scope, b"cookie") for pair in value.split(b";")]
    named = [[value for name, _, value in pairs if name == wanted.encode()] for wanted in (SECURE, COOKIE)]
    cookies = named[0] or ([] if over_tls(scope) else named[1])
    if len(cookies) > 1 or any(len(cookie) > LONG for cookie in cookies):
        raise unauthorized(f"the cookie {COOKIE} is there twice, or is none of this server's", "session_ended")
    return cookies[0].decode("latin-1") if cookies else None


def unauthorized(message: str, code: str | None) -> ApiError:
    return ApiError(401, message, code=code, headers={"www-authenticate": "Bearer"})


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()
