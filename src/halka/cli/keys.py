"""`halka keys`: the API keys of a server, which sees what changes at the next request."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from halka.cli.command import Command, Json, emit, examples, group, memory_size, say, show
from halka.util.errors import HalkaError
from halka.util.text import columns, one_line, plural

if TYPE_CHECKING:
    from halka.server.guards.keys import Keys

UNITS = {"h": "hours", "d": "days", "w": "weeks"}
MOST = 2**60 - 1  # of a limit, as the file of keys has it

app = group(
    "API keys of `halka serve`: who may call, as whom, and how much.",
    "halka keys add --expires 90d",
    "halka keys add --tenant acme --role manager --requests 600 --note 'nightly import'",
    "halka keys list",
    "halka keys revoke 3f2a9c0d1e4b5a67",
)

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
    role: Annotated[
        Literal["monitor", "user", "manager", "admin"],
        typer.Option(metavar="ROLE", help="monitor (metrics alone), user (answers), manager (adds and removes), admin"),
    ] = "user",
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
    note: Annotated[str, typer.Option(metavar="TEXT", help="what it is for, shown in lists")] = "",
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
        limits = ", ".join(f"{name} {value:,}" for name, value in vars(key.limits).items() if value is not None)
        expires += " (expired)" if key.expired else ""
        table.add_row(
            key.id,
            key.tenant,
            key.role,
            f"{key.created:%Y-%m-%d}",
            expires,
            limits or "–",
            key.parent or "–",
            key.note or "–",
        )
    show(table, f"{plural(len(keys), 'key')} in {_keys(data).path}")


@app.command("revoke", cls=Command, epilog=examples("halka keys revoke 3f2a9c0d1e4b5a67"))
def revoke(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="the keys' ids, as `halka keys list` shows them")],
    data: Data = HERE,
    json: Json = False,
) -> None:
    """Remove keys. Answers under way with one of them end within a second."""
    keys, revoked = _keys(data), []
    for id in ids:
        revoked.append(keys.revoke(id).shown)
    if json:
        emit(revoked)
    else:
        show(*(f"{row['id']}: revoked" for row in revoked))


def _keys(data: Path) -> Keys:
    from halka.server.guards.keys import Keys

    if data.is_file():
        raise HalkaError(f"--data: {data} is a file: name the server's folder")
    return Keys(data / "keys.json")


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
