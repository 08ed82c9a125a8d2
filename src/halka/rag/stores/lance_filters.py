"""LanceDB's filters: a scope, and texts, in its filter language."""

from __future__ import annotations

from collections.abc import Iterable

from halka.rag.store import Scope, below


def where_of(scope: Scope) -> str:
    """The scope as the table's filter."""
    parts = [f"array_has_any(readers, {array(scope.readers)})"]
    if scope.tags:
        parts.append(f"array_has_all(tags, {array(scope.tags)})")
    if scope.under:
        name, beginning = quoted(scope.under.rstrip("/")), quoted(below(scope.under))
        parts.append(f"(document = {name} OR starts_with(document, {beginning}))")
    return " AND ".join(parts)


def one_of(column: str, values: Iterable[str]) -> str:
    return f"{column} IN ({', '.join(map(quoted, values))})"


def array(values: Iterable[str]) -> str:
    among = ", ".join(map(quoted, sorted(values)))
    return f"[{among}]" if among else "arrow_cast(make_array(), 'List(Utf8)')"


def quoted(text: str) -> str:
    """A text as a literal of the filter language: quotes are doubled, no other character has a meaning."""
    return "'" + text.replace("'", "''") + "'"
