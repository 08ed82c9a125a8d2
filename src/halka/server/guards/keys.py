"""API keys: 256 random bits, of which the file keeps the SHA-256; each has a tenant, a role, an expiry and limits."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from filelock import FileLock, Timeout
from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter, ValidationError

from halka.util.errors import DamagedFolderError, HalkaError
from halka.util.files import portable_name, write_file

Role = Literal["monitor", "user", "manager", "admin"]
ROLES: tuple[Role, ...] = ("monitor", "user", "manager", "admin")
MAIN = "main"  # the operator's tenant
PREFIX = "halka_"
MOST = 2**60 - 1  # of a limit, as of a size of memory
Amount = Annotated[int, Field(ge=1, le=MOST)]
TIMEOUT = 10.0  # seconds to wait for another process that changes the file


@dataclass(frozen=True)
class Limits:
    """What may be done with a key; None is the server's default.

    requests     requests a minute
    tokens       tokens a minute, of prompts and answers
    concurrency  answers under way at once
    storage      bytes of adapters, documents, jobs and uploads that its tenant may have when it adds more
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    requests: Amount | None = None
    tokens: Amount | None = None
    concurrency: Amount | None = None
    storage: Amount | None = None

    def within(self, bounds: Limits) -> Limits:
        """These, none of them beyond `bounds`, which also fill in what is left out."""
        pairs = {name: (value, getattr(bounds, name)) for name, value in vars(self).items()}
        least = {name: min((one for one in pair if one is not None), default=None) for name, pair in pairs.items()}
        return Limits(**least)


@dataclass(frozen=True)
class Root:
    """A tenant's admin's key whose limits hold for itself and all keys that were made with it, or with those, together.

    They are kept with each of these, so that they hold when the key itself is revoked.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    limits: Limits


@dataclass(frozen=True)
class Key:
    """A key, without its text: `id` is the beginning of its `hash`, and names it in lists and logs.

    parent  the id of the key that made it; None: the operator did
    root    whose limits it shares
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    hash: str
    tenant: str
    role: Role
    created: AwareDatetime
    expires: AwareDatetime | None = None
    note: str = ""
    limits: Limits = field(default_factory=Limits)
    parent: str | None = None
    root: Root | None = None

    @property
    def expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)

    @property
    def shown(self) -> dict[str, Any]:
        """The key as lists show it: its hash is nobody's business."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "role": self.role,
            "created": self.created.isoformat(),
            "expires": self.expires and self.expires.isoformat(),
            "expired": self.expired,
            "limits": {name: value for name, value in vars(self.limits).items() if value is not None},
            "note": self.note,
            "parent": self.parent,
        }


KEYS = TypeAdapter(list[Key])
Check = Callable[[Mapping[str, Key]], object]
"""Raises an error where the keys, as they are while nobody else changes them, stand in the way of a change."""


class Keys:
    """The keys in a file, which other processes may change: the next look sees what they did.

    A file beside it says that there were keys once: where theirs is lost, the server stays closed.
    """

    def __init__(self, path: Path):
        self.path, self._once = path, path.with_suffix(".required")
        self._read: tuple[tuple[int, ...], dict[str, Key]] | None = None  # one value: threads read it, too
        self._required = False

    @property
    def required(self) -> bool:
        """Whether callers need a key: once there was one, for good, even if the file is empty or lost."""
        self._required = self._required or self.path.exists() or self._once.exists()
        return self._required

    def all(self) -> dict[str, Key]:
        """The keys by their ids, expired ones too. Raises DamagedFolderError for a file that cannot be read."""
        try:
            read = self._read
            if read is None or read[0] != _stamp(os.stat(self.path)):
                with self.path.open("rb") as file:
                    read = _stamp(os.fstat(file.fileno())), self._parse(file.read())
                self._read = read
            return read[1]
        except FileNotFoundError:
            self._read = None
            return {}

    def find(self, text: bytes) -> Key | None:
        """The key with this text, unless it has expired. The time that this takes depends on nothing secret."""
        digest = hashlib.sha256(text).hexdigest()
        key = self.all().get(_id(digest))
        return key if key is not None and hmac.compare_digest(key.hash, digest) and not key.expired else None

    def valid(self, key: Key) -> bool:
        """Whether a key is neither revoked nor changed nor expired."""
        return self.all().get(key.id) == key and not key.expired

    def add(
        self,
        tenant: str,
        role: Role,
        expires: datetime | None = None,
        limits: Limits | None = None,
        note: str = "",
        check: Check = lambda _: None,
        parent: Key | None = None,
    ) -> tuple[str, Key]:
        """Add a key; returns its text, which is nowhere else, and the key. parent: the tenant's admin's that makes it.

        Raises HalkaError for a bad tenant, a monitor of another tenant than the operator's, and a time that is past.
        """
        if portable_name(tenant, "name a tenant") != tenant.lower():
            raise HalkaError(f"{tenant!r} cannot name a tenant: write it in small letters")
        if tenant in ROLES:
            raise HalkaError(f"{tenant!r} cannot name a tenant: it is a role, and documents name both as their readers")
        _check_role(role, tenant)
        if expires is not None and expires <= datetime.now(UTC):
            then = f"{expires:%Y-%m-%d %H:%M} {expires.tzname()}"
            raise HalkaError(f"the key would have expired at {then}: choose a later time")
        text = PREFIX + secrets.token_urlsafe(32)
        digest = hashlib.sha256(text.encode()).hexdigest()
        now = datetime.now(UTC).replace(microsecond=0)
        root = parent and (parent.root or Root(parent.id, parent.limits))
        key = Key(_id(digest), digest, tenant, role, now, expires, note, limits or Limits(), parent and parent.id, root)
        with self._changed() as keys:
            check(keys)
            keys[key.id] = key
        return text, key

    def change(self, id: str, to: Callable[[Key], Key], check: Check = lambda _: None) -> Key:
        """Change a key's role, limits, expiry or note. No key that was made with it may more than its limits then.

        Raises HalkaError if there is none, and for a monitor of another tenant than the operator's.
        """
        with self._changed() as keys:
            check(keys)
            before = _key_of(keys, id)
            keys[id] = key = to(before)
            _check_role(key.role, key.tenant)
            if key.limits != before.limits:
                below = {id}
                for other in keys.values():  # in the order in which they were made
                    rooted = other.root is not None and other.root.id == id
                    if rooted or other.parent in below:
                        below.add(other.id)
                        root = Root(id, key.limits) if rooted else other.root
                        keys[other.id] = replace(other, limits=other.limits.within(key.limits), root=root)
            return key

    def revoke(self, id: str, check: Check = lambda _: None) -> Key:
        """Remove the key of this id. Raises HalkaError if there is none."""
        with self._changed() as keys:
            check(keys)
            _key_of(keys, id)
            return keys.pop(id)

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Key]]:
        """The keys to be changed, which are written at the block's end, while no other process changes them."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(f"{self.path}.lock", timeout=TIMEOUT):
                keys = dict(self.all())
                yield keys
                self._once.touch(mode=0o600)
                write_file(self.path, lambda beside: _write_private(beside, KEYS.dump_json([*keys.values()], indent=1)))
        except Timeout:
            raise HalkaError(f"another process has locked {self.path}: try again when it has ended") from None

    def _parse(self, content: bytes) -> dict[str, Key]:
        try:
            keys = KEYS.validate_json(content)
        except ValidationError as error:
            reason = str(error).splitlines()[0]
            raise DamagedFolderError(f"{self.path} does not hold keys ({reason}): restore it from a backup") from None
        return {_id(key.hash): key for key in keys}


def _key_of(keys: Mapping[str, Key], id: str) -> Key:
    if id not in keys:
        raise HalkaError(f"there is no key {id!r}: `halka keys list` shows the ids")
    return keys[id]


def _check_role(role: Role, tenant: str) -> None:
    if role == "monitor" and tenant != MAIN:
        raise HalkaError(f"a monitor's key is of tenant {MAIN}: metrics are about all tenants")


def _id(digest: str) -> str:
    return digest[:16]


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
