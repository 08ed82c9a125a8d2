"""The SQL of a collection in PostgreSQL; `{documents}`, `{passages}` and `{schema}` become the names of its tables."""

from __future__ import annotations

from typing import LiteralString

BEGIN: tuple[LiteralString, ...] = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    """CREATE TABLE {documents} (
        name text COLLATE "C" PRIMARY KEY, digest text NOT NULL, readers text[] NOT NULL, tags text[] NOT NULL,
        added text NOT NULL, passages int NOT NULL, length bigint NOT NULL DEFAULT 0)""",
    """CREATE TABLE {passages} (
        document text COLLATE "C" REFERENCES {documents} ON DELETE CASCADE, number int, text text NOT NULL,
        "start" int NOT NULL, "end" int NOT NULL, page int, heading text NOT NULL,
        words tsvector NOT NULL, length int NOT NULL, vector vector({width}) NOT NULL,
        PRIMARY KEY (document, number))""",
    "ALTER TABLE {passages} ALTER COLUMN vector SET STORAGE MAIN",  # in the row, where a scan reads it fastest
    "CREATE INDEX ON {documents} USING gin (readers, tags)",
    "CREATE INDEX ON {passages} USING gin (words)",
)
PUT_DOCUMENT: LiteralString = """INSERT INTO {documents} (name, digest, readers, tags, added, passages)
    VALUES (%(name)s, %(digest)s, %(readers)s, %(tags)s, %(added)s, %(passages)s)"""
PUT_PASSAGE: LiteralString = """INSERT INTO {passages}
    SELECT %(document)s, %(number)s, %(text)s, %(start)s, %(end)s, %(page)s, %(heading)s, words,
        (SELECT coalesce(sum(cardinality(positions)), 0) FROM unnest(words)), %(vector)s::real[]::vector
    FROM to_tsvector('pg_catalog.english', %(searched)s) AS words"""
PUT_LENGTHS: LiteralString = """UPDATE {documents} AS d SET length = total
    FROM (SELECT document, sum(length) AS total FROM {passages} WHERE document = ANY(%(names)s) GROUP BY document) AS p
    WHERE d.name = p.document"""
SET_ACCESS: LiteralString = """UPDATE {documents} SET readers = %(readers)s, tags = %(tags)s
    WHERE name = ANY(%(names)s)"""
REMOVE: LiteralString = """WITH gone AS (DELETE FROM {documents} WHERE name = ANY(%(names)s) RETURNING passages)
    SELECT coalesce(sum(passages), 0) FROM gone"""

DOCUMENTS: LiteralString = "SELECT name, digest, readers, tags, added, passages FROM {documents} AS d"
SCOPE: LiteralString = """d.readers && %(readers)s::text[] AND d.tags @> %(tags)s::text[]
    AND (d.name = %(under)s OR starts_with(d.name, %(below)s))"""
PASSAGES: LiteralString = """SELECT p.document, p.number, p.text, p."start", p."end", p.page, p.heading, d.readers{more}
    FROM {passages} AS p JOIN {documents} AS d ON d.name = p.document"""
SOME: LiteralString = f"{PASSAGES} WHERE {SCOPE} AND d.name = %(document)s AND p.number = ANY(%(numbers)s) ORDER BY 2"
NEAREST: LiteralString = f"""WITH near AS (
        SELECT p.document, p.number, p.vector <=> %(vector)s::real[]::vector AS away
        FROM {{passages}} AS p JOIN {{documents}} AS d ON d.name = p.document
        WHERE {SCOPE} ORDER BY away, p.document, p.number LIMIT %(count)s)
    {PASSAGES} JOIN near USING (document, number) ORDER BY away, p.document, p.number"""
# `asked` has the question's words and how often they occur in it, `hits` those words in passages.
MATCHING: LiteralString = f"""WITH
    asked AS MATERIALIZED (
        SELECT lexeme, cardinality(positions) AS times
        FROM unnest(to_tsvector('pg_catalog.english', %(words)s))),
    any_of AS MATERIALIZED (
        SELECT string_agg('''' || replace(replace(lexeme, '\\', '\\\\'), '''', '''''') || '''', ' | ')::tsquery AS query
        FROM asked),
    whole AS MATERIALIZED (
        SELECT sum(d.passages)::float8 AS count, sum(d.length)::float8 / nullif(sum(d.passages), 0) AS length
        FROM {{documents}} AS d WHERE {SCOPE}),
    hits AS MATERIALIZED (
        SELECT p.document, p.number, p.length, word.lexeme, cardinality(word.positions) AS times
        FROM {{passages}} AS p JOIN {{documents}} AS d ON d.name = p.document, unnest(p.words) AS word
        WHERE p.words @@ (SELECT query FROM any_of) AND {SCOPE} AND word.lexeme IN (SELECT lexeme FROM asked)),
    weights AS (
        SELECT hits.lexeme, asked.times * ln(1 + (whole.count - count(*) + 0.5) / (count(*) + 0.5)) AS weight
        FROM hits JOIN asked USING (lexeme), whole GROUP BY hits.lexeme, asked.times, whole.count),
    best AS (
        SELECT hits.document, hits.number, sum(weight * hits.times * (%(k1)s + 1.0) / (
            hits.times + %(k1)s * (1.0 - %(b)s + %(b)s * hits.length / whole.length))) AS score
        FROM hits JOIN weights USING (lexeme), whole GROUP BY hits.document, hits.number
        ORDER BY score DESC, hits.document, hits.number LIMIT %(count)s)
    {PASSAGES} JOIN best USING (document, number) ORDER BY score DESC, p.document, p.number"""
