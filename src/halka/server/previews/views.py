"""Previews and estimates as clients see them: plain data, whose lists and texts have an end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

from halka.data.preview import Preview, Shown
from halka.data.readers import Problem

if TYPE_CHECKING:
    from halka.server.previews.process import Needs

LISTED, SPANS = 100, 400  # of a list; of an example
LETTERS, REASON = 4000, 500  # of a span; of a message
LINE = re.compile(r"(?:^|:)(?:row )?(\d+)$")


def view_of_preview(preview: Preview) -> dict[str, Any]:
    """A preview. Its lists have a `count`, and the `first` of them."""
    return {
        "object": "data.preview",
        "shape": preview.shape,
        "fields": preview.fields,
        "unread": preview.unread[:LISTED],
        "chat_template": preview.chat_template,
        "examples": preview.examples,
        "lengths": asdict(preview.lengths),
        "loss_share": preview.loss_share,
        "packing": None if preview.packing is None else asdict(preview.packing),
        "problems": _listed([_problem(problem) for problem in preview.problems[:LISTED]], len(preview.problems)),
        "repeated": _listed([asdict(pair) for pair in preview.repeated[:LISTED]], len(preview.repeated)),
        "shared": next(
            (_listed([asdict(pair) for pair in pairs[:LISTED]], len(pairs)) for pairs in preview.shared.values()), None
        ),
        "notes": [note[:REASON] for note in preview.notes],
        "shown": [_shown(shown) for shown in preview.shown],
    }


def view_of_needs(needs: Needs) -> dict[str, Any]:
    """The estimate of one method, beside the memory that is free here."""
    estimate, (row,) = needs.estimate, needs.estimate.rows
    assert row.memory is not None
    total = row.memory.total + estimate.process
    return {
        "object": "estimate",
        "method": row.method,
        "fields": row.fields,
        "parameters": estimate.parameters,
        "trained": row.trained,
        "batch": {"rows": estimate.setup.rows, "length": estimate.setup.length},
        "memory": {**asdict(row.memory), "process": estimate.process, "all": total},
        "available": needs.available,
        "fits": total <= needs.available,
        "steps": needs.steps,
        "seconds_a_step": needs.seconds_a_step,
        "seconds": None if needs.seconds_a_step is None else needs.seconds_a_step * needs.steps,
        "speed": estimate.source,
        "stored": row.stored,
        "gpu": estimate.gpu,
    }


def _listed(first: Sequence[Any], count: int) -> dict[str, Any]:
    return {"count": count, "first": first}


def _problem(problem: Problem) -> dict[str, Any]:
    line = LINE.search(problem.where)
    return {"where": problem.where, "line": int(line[1]) if line else None, "reason": problem.reason[:REASON]}


def _shown(shown: Shown) -> dict[str, Any]:
    """An example; `more`: spans that are left out, and `cut`: characters of a span that are."""
    spans = [
        {**asdict(span), "text": span.text[:LETTERS], "cut": max(0, len(span.text) - LETTERS)}
        for span in islice(shown.spans, SPANS)
    ]
    return {
        "where": shown.where,
        "tokens": shown.tokens,
        "spans": spans,
        "more": max(0, len(shown.spans) - SPANS),
    }
