"""`halka keys`: the API keys of a server, which sees what changes at the next request."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from halka.cli.command import Command, Json, emit, examples, group, memory_size, say, show
from halka.util.errors import HalkaError
from halka.util.text import columns, one_line, plural

if TYPE_CHECKING:
    from halka.server.guards.keys import Key, Keys

UNITS = {"h": "hours", "d": "days", "w": "weeks"}
MOST = 2**60 - 1  # of a limit, as the file of keys has it
NONE = "none"  # unsets a limit

app = group(
    "API keys of `halka serve`: who may call, as whom, and how much.",
    "halka keys add --expires 90d",
    "halka keys add --tenant acme --role manager --requests 600 --note 'nightly import'",
    "halka keys list",
    "halka keys change 3f2a9c0d1e4b5a67 --role user",
    "halka keys revoke 3f2a9c0d1e4b5a67",
)

Role = Literal["monitor", "user", "manager", "admin"]
OF_ROLE = "monitor (metrics alone), user (answers), manager (adds and removes), admin"
OF_NOTE = "what it is for, shown in lists"
Data = Annotated[
    Path, typer.Option("--data", metavar="FOLDER", envvar="HALKA_SERVE_DATA", help="the server's --data, with its keys")
]
HERE = Path("halka-server")


@app.command(
    "add",
    cls=Command,
    epilog=examples(
        "halka keys add --expires 90d",
        "halka keys add --tenant acme --role manager --tokens 100000 --storage 2GB",
        "halka keys add --role monitor --note prometheus",
    ),
)
def add(
    tenant: Annotated[str, typer.Option(metavar="NAME", help="whose adapters, documents and jobs it is for")] = "main",
    role: Annotated[Role, typer.Option(metavar="ROLE", help=OF_ROLE)] = "user",
    expires: Annotated[
        str | None, typer.Option(metavar="WHEN", help="a date (2027-01-31), or in so long: 12h, 90d, 8w [never]")
    ] = None,
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MOST, help="requests a minute [the server's]")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MOST, help="tokens a minute [the server's]")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", min=1, max=MOST, help="requests and answers at once [the server's]")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="of its tenant's adapters, documents, jobs and uploads, in GB [the server's]"
        ),
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help=OF_NOTE)] = "",
    data: Data = HERE,
    json: Json = False,
) -> None:
    """Add a key and print it. It is shown this once: the file keeps its hash.

    The first key closes a server that was open to its own machine: from then on all need one.
    """
    from halka.server.guards.keys import Limits

    limits = Limits(requests, tokens, concurrency, memory_size(storage, "--storage"))
    text, key = _keys(data).add(tenant, role, _time(expires), limits, one_line(note))
    if json:
        emit({"key": text, **key.shown})
    else:
        say(f"{key.id}: {key.role} of {key.tenant}; the key is shown this once:")
        show(text)


@app.command("list", cls=Command, epilog=examples("halka keys list", "halka keys list --json"))
def list_(data: Data = HERE, json: Json = False) -> None:
    """List the keys, without their texts."""
    keys = [*_keys(data).all().values()]
    if json:
        return emit([key.shown for key in keys])
    table = columns("id", "tenant", "role", "created", "expires", "limits", "parent", "note")
    for key in keys:
        expires = "never" if key.expires is None else f"{key.expires:%Y-%m-%d %H:%M}"
        expires += " (expired)" if key.expired else ""
        table.add_row(
            key.id,
            key.tenant,
            key.role,
            f"{key.created:%Y-%m-%d}",
            expires,
            _limits_of(key) or "–",
            key.parent or "–",
            key.note or "–",
        )
    show(table, f"{plural(len(keys), 'key')} in {_keys(data).path}")


@app.command(
    "change",
    cls=Command,
    epilog=examples(
        "halka keys change 3f2a9c0d1e4b5a67 --role manager --storage 2GB",
        "halka keys change 3f2a9c0d1e4b5a67 --requests none --note 'nightly import'",
    ),
)
def change(
    id: Annotated[str, typer.Argument(metavar="ID", help="the key's id, as `halka keys list` shows it")],
    role: Annotated[Role | None, typer.Option(metavar="ROLE", help=OF_ROLE)] = None,
    requests: Annotated[str | None, typer.Option(metavar="N", help="requests a minute; none: the server's")] = None,
    tokens: Annotated[str | None, typer.Option(metavar="N", help="tokens a minute; none: the server's")] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="N", help="requests and answers at once; none: the server's")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="of its tenant's adapters, documents, jobs and uploads, in GB; none: the server's"
        ),
    ] = None,
    note: Annotated[str | None, typer.Option(metavar="TEXT", help=OF_NOTE)] = None,
    data: Data = HERE,
    json: Json = False,
) -> None:
    """Change what a key may do, or its note; all else stays, its text too.

    What is under way with it ends within a second. Keys that were made with it never may more than it may.
    """
    amounts = {"requests": requests, "tokens": tokens, "concurrency": concurrency}
    limits = {name: _limit(text, f"--{name}") for name, text in amounts.items() if text is not None}
    if storage is not None:
        limits["storage"] = None if storage == NONE else memory_size(storage, "--storage")
    if role is None and note is None and not limits:
        raise HalkaError("there is nothing to change: give --role, --note or a limit")

    def changed(key: Key) -> Key:
        note_now = key.note if note is None else one_line(note)
        return replace(key, role=role or key.role, limits=replace(key.limits, **limits), note=note_now)

    key = _keys(data).change(id, changed)
    limited = _limits_of(key) or "the server's limits"
    emit(key.shown) if json else show(f"{key.id}: {key.role} of {key.tenant}; {limited}")


@app.command("revoke", cls=Command, epilog=examples("halka keys revoke 3f2a9c0d1e4b5a67"))
def revoke(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="the keys' ids, as `halka keys list` shows them")],
    data: Data = HERE,
    json: Json = False,
) -> None:
    """Remove keys. Answers under way with one of them end within a second."""
    keys = _keys(data)
    if missing := [id for id in ids if id not in keys.all()]:
        raise HalkaError(f"there is no key {missing[0]!r}: `halka keys list` shows the ids. None was revoked")
    revoked = [keys.revoke(id).shown for id in dict.fromkeys(ids)]
    if json:
        emit(revoked)
    else:
        show(*(f"{row['id']}: revoked" for row in revoked))


def _keys(data: Path) -> Keys:
    from halka.server.guards.keys import Keys

    if data.is_file():
        raise HalkaError(f"--data: {data} is a file: name the server's folder")
    return Keys(data / "keys.json")


def _limits_of(key: Key) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in vars(key.limits).items() if value is not None)


def _limit(text: str, flag: str) -> int | None:
    """A limit; None for the server's. Raises HalkaError for what is neither."""
    if text == NONE:
        return None
    if not re.fullmatch(r"[0-9]{1,19}", text) or not 1 <= int(text) <= MOST:
        raise HalkaError(f"{flag}: {text!r} is no limit: give a number from 1 on, or none for the server's")
    return int(text)


def _time(text: str | None) -> datetime | None:
    """When a key expires. Raises HalkaError for what is neither a date nor a time from now."""
    if text is None:
        return None
    try:
        if match := re.fullmatch(r"(\d{1,5})([hdw])", text):
            return datetime.now(UTC).replace(microsecond=0) + timedelta(**{UNITS[match[2]]: int(match[1])})
        time = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise HalkaError(f"--expires: {text!r} is no date: write 2027-01-31, or 12h, 90d, 8w from now") from None
    return time.replace(tzinfo=time.tzinfo or UTC)
