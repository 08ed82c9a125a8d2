"""A forest says where its segments stand and how far each token is from its root."""

from __future__ import annotations

import pytest

from halka.util.forest import Forest

# 0 ─┬─ 1 ─── 2     4 ── 5, in two runs
#    └─ 3
FOREST = Forest(lengths=(3, 2, 1, 4, 2, 2), parents=(-1, 0, 1, 0, -1, 4), runs=(10, 4))


def test_where_segments_stand():
    assert FOREST.tokens == 14
    assert FOREST.starts == (0, 3, 5, 6, 10, 12)
    assert FOREST.ends == (10, 6, 6, 10, 14, 14)
    assert FOREST.offsets == (0, 3, 5, 3, 0, 2)
    assert FOREST.run_of_segment == (0, 0, 0, 0, 1, 1)
    assert FOREST.longest_of_runs == (7, 4)
    assert Forest(lengths=(2,), parents=(-1,), runs=(0, 2)).longest_of_runs == (0, 2)
    assert [FOREST.ancestors(segment) for segment in range(6)] == [(), (0,), (0, 1), (0,), (), (4,)]


def test_positions_count_from_the_root():
    assert FOREST.positions.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("lengths", "parents", "runs", "message"),
    [
        ((2, 2), (-1,), (4,), "2 lengths, but 1 parents"),
        ((2, 0), (-1, 0), (2,), "none is empty"),
        ((), (), (), "none is empty"),
        ((2, 2), (-1, 0), (3,), "the runs have 3 tokens, the segments 4"),
        ((2, 2), (1, -1), (4,), "segment 0 does not stand behind its parent, 1"),
        ((2, 2), (-1, -2), (4,), "segment 1 does not stand behind its parent, -2"),
        ((2, 2, 2), (-1, -1, 0), (6,), "segment 2 does not stand behind its parent, 0, in its subtree"),
        ((2, 2), (-1, 0), (2, 2), "segment 1 lies in another run than its parent, 0"),
        ((2, 2), (-1, -1), (3, 1), "segment 1 lies in more than one run"),
    ],
)
def test_what_does_not_fit_is_refused(lengths, parents, runs, message):
    with pytest.raises(ValueError, match=message):
        Forest(lengths, parents, runs)
