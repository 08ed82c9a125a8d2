"""Parquet becomes JSON lines in a process of its own: `python -m halka.server.jobs.parquet FILE LINES MOST`.

A small file may hold any number of rows; what is written has so many bytes at most.
"""

from __future__ import annotations

import json
import sys

from halka.data.readers import Row, read_rows
from halka.server.apart import limit_memory
from halka.server.jobs.reading import MEMORY
from halka.util.errors import DataError


def main(path: str, lines: str, most: str) -> None:
    """Write a file's rows, a line for each, or print why they cannot be read."""
    limit_memory(MEMORY)
    left = int(most)
    try:
        with open(lines, "xb") as file:
            for row in read_rows(path):
                line = json.dumps(row.fields if isinstance(row, Row) else row.reason, default=str).encode() + b"\n"
                left -= len(line)
                if left < 0:
                    raise DataError(f"{path} has more than {int(most):,} bytes of rows: split it")
                file.write(line)
    except DataError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
