"""The SQL of a collection in PostgreSQL; `{documents}`, `{passages}`, `{words}`, `{schema}` become its tables' names.

`words` is the inverted index. A row holds one word's postings in one block of documents, as arrays of one length: in
which passages the word is, how often, and how long they are. A row a posting would take three times the space. Putting
or removing a document changes the rows of its words in its block, and no others.
"""

from __future__ import annotations

from typing import LiteralString

BLOCK = 1024  # passages, about, in a block
WORDS: tuple[LiteralString, ...] = (
    """CREATE TABLE {words} (
        word text COLLATE "C", block int, documents int[] NOT NULL, numbers int[] NOT NULL, times int[] NOT NULL,
        lengths int[] NOT NULL, PRIMARY KEY (word, block))""",
    "CREATE UNIQUE INDEX ON {documents} (id)",
    "CREATE INDEX ON {documents} (block)",
)
BEGIN: tuple[LiteralString, ...] = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    """CREATE TABLE {documents} (
        name text COLLATE "C" PRIMARY KEY, digest text NOT NULL, readers text[] NOT NULL, tags text[] NOT NULL,
        added text NOT NULL, passages int NOT NULL, length bigint NOT NULL DEFAULT 0,
        id int GENERATED ALWAYS AS IDENTITY, block int NOT NULL)""",
    """CREATE TABLE {passages} (
        document text COLLATE "C" REFERENCES {documents} ON DELETE CASCADE, number int, text text NOT NULL,
        "start" int NOT NULL, "end" int NOT NULL, page int, heading text NOT NULL,
        words tsvector NOT NULL, length int NOT NULL, vector vector({width}) NOT NULL,
        PRIMARY KEY (document, number))""",
    "ALTER TABLE {passages} ALTER COLUMN vector SET STORAGE MAIN",  # in the row, where a scan reads it fastest
    "CREATE INDEX ON {documents} USING gin (readers, tags)",
    *WORDS,
)

PUT_DOCUMENT: LiteralString = """INSERT INTO {documents} (name, digest, readers, tags, added, passages, block)
    VALUES (%(name)s, %(digest)s, %(readers)s, %(tags)s, %(added)s, %(passages)s, %(block)s)"""
PUT_PASSAGE: LiteralString = """INSERT INTO {passages}
    SELECT %(document)s, %(number)s, %(text)s, %(start)s, %(end)s, %(page)s, %(heading)s, words,
        (SELECT coalesce(sum(cardinality(positions)), 0) FROM unnest(words)), %(vector)s::real[]::vector
    FROM to_tsvector('pg_catalog.english', %(searched)s) AS words"""
PUT_LENGTHS: LiteralString = """UPDATE {documents} AS d SET length = total
    FROM (SELECT document, sum(length) AS total FROM {passages} WHERE document = ANY(%(names)s) GROUP BY document) AS p
    WHERE d.name = p.document"""
ALL_WORDS: LiteralString = """INSERT INTO {words} AS before
    SELECT lexeme, block, array_agg(id), array_agg(number), array_agg(cardinality(positions)), array_agg(p.length)
    FROM {passages} AS p JOIN {documents} AS d ON d.name = p.document, unnest(p.words){more} GROUP BY lexeme, block"""
PUT_WORDS: LiteralString = """ WHERE d.name = ANY(%(names)s)"""
ADD_WORDS: LiteralString = f"""{ALL_WORDS}
    ON CONFLICT (word, block) DO UPDATE SET documents = before.documents || EXCLUDED.documents,
        numbers = before.numbers || EXCLUDED.numbers, times = before.times || EXCLUDED.times,
        lengths = before.lengths || EXCLUDED.lengths"""
LAST_BLOCK: LiteralString = """SELECT block, sum(passages) FROM {documents}
    WHERE block = (SELECT max(block) FROM {documents}) GROUP BY block"""
SET_ACCESS: LiteralString = """UPDATE {documents} SET readers = %(readers)s, tags = %(tags)s
    WHERE name = ANY(%(names)s)"""
# Each row by the index: the planner takes the words for few, and must have no other join to choose.
REMOVE_WORDS: LiteralString = """WITH
    touched AS MATERIALIZED (
        SELECT DISTINCT lexeme AS word, block
        FROM {documents} JOIN {passages} AS p ON name = document, unnest(p.words) WHERE name = ANY(%(names)s)),
    kept AS MATERIALIZED (
        SELECT w.word, w.block, kept.* FROM touched JOIN {words} AS w USING (word, block), LATERAL (
            SELECT array_agg(document) AS documents, array_agg(number) AS numbers, array_agg(times) AS times,
                array_agg(length) AS lengths
            FROM unnest(w.documents, w.numbers, w.times, w.lengths) AS posting (document, number, times, length)
            WHERE document <> ALL(%(ids)s)) AS kept),
    shorter AS (
        UPDATE {words} AS w SET documents = kept.documents, numbers = kept.numbers, times = kept.times,
            lengths = kept.lengths
        FROM kept WHERE w.word = kept.word AND w.block = kept.block AND kept.documents IS NOT NULL)
    DELETE FROM {words} AS w USING kept
    WHERE w.word = kept.word AND w.block = kept.block AND kept.documents IS NULL"""
IDS: LiteralString = "SELECT id FROM {documents} WHERE name = ANY(%(names)s)"
REMOVE: LiteralString = """WITH gone AS (DELETE FROM {documents} WHERE name = ANY(%(names)s) RETURNING passages)
    SELECT coalesce(sum(passages), 0) FROM gone"""

# Collections of before 2026-11-28 have no table of words, but a GIN index over the passages' words.
UPGRADE: tuple[LiteralString, ...] = (
    "ALTER TABLE {documents} ADD COLUMN id int GENERATED ALWAYS AS IDENTITY, ADD COLUMN block int",
    """UPDATE {documents} AS d SET block = before / {block}
        FROM (SELECT name, sum(passages) OVER (ORDER BY id) - passages AS before FROM {documents}) AS counted
        WHERE d.name = counted.name""",
    "ALTER TABLE {documents} ALTER COLUMN block SET NOT NULL",
    *WORDS,
    ALL_WORDS,
)
OLD_INDEX: LiteralString = """SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid
    WHERE indrelid = to_regclass(%s) AND relam = (SELECT oid FROM pg_am WHERE amname = 'gin')"""

DOCUMENTS: LiteralString = "SELECT name, digest, readers, tags, added, passages FROM {documents} AS d"
SCOPE: LiteralString = """d.readers && %(readers)s::text[] AND d.tags @> %(tags)s::text[]
    AND (d.name = %(under)s OR starts_with(d.name, %(below)s))"""
PASSAGES: LiteralString = """SELECT p.document, p.number, p.text, p."start", p."end", p.page, p.heading, d.readers{more}
    FROM {passages} AS p JOIN {documents} AS d ON d.name = p.document"""
SOME: LiteralString = f"{PASSAGES} WHERE {SCOPE} AND d.name = %(document)s AND p.number = ANY(%(numbers)s) ORDER BY 2"
CANDIDATES: LiteralString = f"""SELECT p.document, p.number, p.vector <=> %(vector)s::real[]::vector AS away
        FROM {{passages}} AS p JOIN {{documents}} AS d ON d.name = p.document WHERE {SCOPE}"""
BY_DISTANCE: LiteralString = f"{PASSAGES} JOIN near USING (document, number) ORDER BY away, p.document, p.number"
NEAREST: LiteralString = f"""WITH near AS ({CANDIDATES} ORDER BY away, p.document, p.number LIMIT %(count)s)
    {BY_DISTANCE}"""

# The index over vectors has them in half precision; what it finds is compared in full. Nobody waits while it is made.
INDEX: LiteralString = """CREATE INDEX CONCURRENTLY {new_index} ON {passages}
    USING hnsw ((vector::halfvec({width})) halfvec_cosine_ops)"""
DROP_INDEX: LiteralString = "DROP INDEX CONCURRENTLY IF EXISTS {index}"
HAS_INDEX: LiteralString = "EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass(%(index)s) AND indisvalid)"
INDEXED: LiteralString = f"""WITH near AS MATERIALIZED ({CANDIDATES}
        ORDER BY p.vector::halfvec({{width}}) <=> %(vector)s::real[]::halfvec({{width}}) LIMIT %(count)s)
    {BY_DISTANCE}"""
TO_INDEX: LiteralString = f"SELECT coalesce(sum(passages), 0)::int8, {HAS_INDEX} FROM {{documents}}"
# How many passages the scope has, or enough of them; none without an index.
IN_INDEX: LiteralString = f"""SELECT coalesce(sum(passages), 0)::int8 FROM (
    SELECT d.passages FROM {{documents}} AS d
    WHERE {HAS_INDEX} AND d.passages > 0 AND {SCOPE} LIMIT %(narrow)s + 1) AS enough"""
# The index yields passages by distance, on and on while the scope leaves out too many. A sort would read all of them.
BY_INDEX: LiteralString = """SET LOCAL hnsw.iterative_scan = strict_order; SET LOCAL hnsw.ef_search = 800;
    SET LOCAL enable_sort = off; SET LOCAL jit = off"""
# `asked` has the question's words and how often they occur in it. `every` says whether the caller may read all
# documents: then the lists are counted and added up as they are; else `postings` are those that may be read.
LISTS: LiteralString = """unnest(w.documents) AS id, unnest(w.numbers) AS number, unnest(w.times) AS times,
        unnest(w.lengths) AS length"""
SCORE: LiteralString = "sum(weight * times / (times + always + by_length * posting.length)) AS score"
MATCHING: LiteralString = f"""WITH
    asked AS MATERIALIZED (
        SELECT lexeme AS word, cardinality(positions) AS asked, place::int
        FROM unnest(to_tsvector('pg_catalog.english', %(words)s))
            WITH ORDINALITY AS word (lexeme, positions, weights, place)),
    every AS MATERIALIZED (SELECT NOT EXISTS (SELECT FROM {{documents}} AS d WHERE NOT ({SCOPE})) AS every),
    allowed AS MATERIALIZED (
        SELECT d.id, d.passages, d.length FROM {{documents}} AS d WHERE NOT (SELECT every FROM every) AND {SCOPE}),
    whole AS MATERIALIZED (
        SELECT sum(passages)::float8 AS count, sum(passages)::float8 / nullif(sum(length), 0) AS by_length
        FROM (SELECT passages, length FROM allowed
            UNION ALL SELECT passages, length FROM {{documents}} WHERE (SELECT every FROM every)) AS documents),
    postings AS MATERIALIZED (
        SELECT place, posting.id, number, times, posting.length
        FROM (SELECT place, {LISTS}
            FROM asked JOIN {{words}} AS w USING (word) WHERE NOT (SELECT every FROM every)) AS posting
        JOIN allowed USING (id)),
    counted AS (
        SELECT place, count(*) AS hits FROM postings GROUP BY place
        UNION ALL
        SELECT place, sum(cardinality(w.documents))
        FROM asked JOIN {{words}} AS w USING (word) WHERE (SELECT every FROM every) GROUP BY place),
    weights AS MATERIALIZED (
        SELECT place, word, (%(k1)s + 1) * asked * ln(1 + (whole.count - hits + 0.5) / (hits + 0.5)) AS weight,
            %(k1)s * (1 - %(b)s::float8) AS always, %(k1)s * %(b)s::float8 * by_length AS by_length
        FROM counted JOIN asked USING (place), whole),
    scored AS (
        SELECT id, number, {SCORE} FROM postings AS posting JOIN weights USING (place) GROUP BY id, number
        UNION ALL
        SELECT id, number, {SCORE}
        FROM (SELECT weight, always, by_length, {LISTS}
            FROM weights JOIN {{words}} AS w USING (word) WHERE (SELECT every FROM every)) AS posting
        GROUP BY id, number),
    best AS (SELECT id, number, score FROM scored ORDER BY score DESC FETCH FIRST %(count)s ROWS WITH TIES)
    {PASSAGES} JOIN best ON (best.id, best.number) = (d.id, p.number)
    ORDER BY score DESC, p.document, p.number LIMIT %(count)s"""
