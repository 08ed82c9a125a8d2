"""How a benchmark's result becomes the rows of a table in the docs.

TABLES has, by the mark in the docs, the name of the file in benchmarks/results and the function that makes rows of it.
"""

from __future__ import annotations

from result_tables import answering, planning, searching, training

TABLES = training.TABLES | answering.TABLES | planning.TABLES | searching.TABLES
