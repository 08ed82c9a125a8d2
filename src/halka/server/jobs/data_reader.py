"""Large data is read in a process of its own: `python -m halka.server.jobs.data_reader check FILE SHAPE ADAPTERS`
prints why a job could not use it, if it could not; `… held_out FILE SHAPE SHARE` the examples that a training held out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from halka.server.apart import limit_memory
from halka.server.jobs.data import problem_of
from halka.server.jobs.held_out import lines_of
from halka.server.jobs.reading import MEMORY
from halka.util.errors import HalkaError


def main(what: str, path: str, shape: str, more: str) -> None:
    """Print what there is to say: of `check` as JSON, of `held_out` lines, or the reason why there are none."""
    limit_memory(MEMORY)
    try:
        if what == "check":
            print(json.dumps(problem_of(Path(path), json.loads(shape), json.loads(more))))
        else:
            sys.stdout.buffer.write(lines_of(Path(path), json.loads(shape), json.loads(more)))
    except HalkaError as error:
        print(json.dumps({"reason": str(error)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
