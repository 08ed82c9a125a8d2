"""Packed batches: examples as a forest of segments in one line, without padding, a common beginning computed once.

The next token's loss is the same as a padded batch's: every label is predicted from the same tokens before it. Three
things are not computed: padding, what examples of one adapter have in common at their beginning (more than once), and
tokens after the last state that predicts a label.

Shape letters: N tokens of the line, M labels.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from halka.data.tokens import Tokens
from halka.util.errors import HalkaError
from halka.util.forest import Forest
from halka.util.transfer import to_device

LEAST_SAVED = 4
"""Tokens that sharing a segment must save for each of the segments below it: two share 8 tokens or more, many 5.
Each more segment is a query block more for attention."""

TokenBytes = bytes
"""Token ids as four bytes each, the highest first: so they compare, and begin with one another, as their tokens do."""
TOKEN = np.dtype(">u4")
WIDTH = TOKEN.itemsize


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Examples of one or more adapters (runs), as int64 tensors.

    input_ids       (1, N), no padding
    position_ids    (1, N), each token's place in its examples
    forest          the line's segments, their parents, and the tokens of each run
    states          (M,) the place in the line whose hidden state predicts a label, ascending
    labels          (M,) the token that it predicts; a state's labels differ
    counts          (M,) the examples of the run that have this label here
    own             the items' own labels, item after item: places among the M
    labels_of_run   how many of the M labels each run has; they stand in the order of runs
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    forest: Forest
    states: torch.Tensor
    labels: torch.Tensor
    counts: torch.Tensor
    labels_of_run: tuple[int, ...]
    own: torch.Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        names = ("input_ids", "position_ids", "states", "labels", "counts", "own")
        moved = to_device([getattr(self, name) for name in names], device)
        return replace(self, **dict(zip(names, moved, strict=True)))

    def filled(self, multiple: int) -> PackedBatch:
        """The batch with its line filled up to a multiple of `multiple` tokens, behind all others: none sees them."""
        missing = -self.input_ids.shape[1] % multiple
        *lengths, last = self.forest.lengths
        *runs, last_run = self.forest.runs
        return replace(
            self,
            input_ids=F.pad(self.input_ids, (0, missing)),
            position_ids=F.pad(self.position_ids, (0, missing)),  # a base may have no position behind the last one
            forest=replace(self.forest, lengths=(*lengths, last + missing), runs=(*runs, last_run + missing)),
        )


def pack(groups: Sequence[Sequence[Tokens]], least_saved: int = LEAST_SAVED) -> PackedBatch:
    """The items of each run as one batch. Items of different runs share nothing: their adapters give other states.

    A segment is shared where that saves `least_saved` tokens or more for each of the segments below it; 0 shares all.
    An item's first token is no label, as in a padded batch. A run without any label keeps one token.

    Raises HalkaError if a run has no items, or there is no run.
    """
    if not groups or not all(groups):
        raise HalkaError("a batch needs at least one item for each adapter")
    segments: list[_Segment] = []
    line: list[TokenBytes] = []
    keys: list[np.ndarray] = []
    ends: list[int] = []  # of the runs, in the line
    offset = 0
    for items in groups:
        tree = _Tree(paths_of(items), least_saved)
        before = len(segments)
        places = np.zeros((len(tree.leaves), max(map(len, tree.leaves)) // WIDTH), dtype=np.int64)
        for segment in tree.segments:
            first, last, start, end, parent = segment
            places[first:last, start:end] = np.arange(offset, offset + end - start)
            line.append(tree.leaves[first][start * WIDTH : end * WIDTH])
            segments.append(segment._replace(parent=parent if parent < 0 else parent + before))
            offset += end - start
        ends.append(offset)
        keys += [_label_keys(item, places[leaf]) for item, leaf in zip(items, tree.leaf_of, strict=True)]
    labels, own, counts = np.unique(np.concatenate(keys), return_inverse=True, return_counts=True)
    states = labels >> 32
    forest = Forest(
        lengths=tuple(segment.end - segment.start for segment in segments),
        parents=tuple(segment.parent for segment in segments),
        runs=tuple(np.diff(ends, prepend=0).tolist()),
    )
    return PackedBatch(
        input_ids=torch.from_numpy(np.frombuffer(b"".join(line), TOKEN).astype(np.int64))[None],
        position_ids=forest.positions[None],
        forest=forest,
        states=torch.from_numpy(states),
        labels=torch.from_numpy(labels & 0xFFFFFFFF),
        counts=torch.from_numpy(counts),
        labels_of_run=tuple(np.diff(np.searchsorted(states, ends), prepend=0).tolist()),
        own=torch.from_numpy(own),
    )


def _label_keys(item: Tokens, places: np.ndarray) -> np.ndarray:
    """An item's labels, each as one number: the state that predicts it, by its place in the line, and the token."""
    before = np.flatnonzero(item.loss[1:])
    return places[before] << 32 | np.array(item.ids, dtype=np.int64)[before + 1]


def paths_of(items: Sequence[Tokens]) -> list[TokenBytes]:
    """Of each item the tokens that its labels are predicted from: those before the last label.

    Where no item has a label, the first one's first token: a batch is never empty.
    """
    paths = [_path(item.ids[: _last_label(item)]) for item in items]
    if items and not any(paths):
        paths[0] = _path(items[0].ids[:1])
    return paths


def computed_tokens(paths: Sequence[TokenBytes], least_saved: int = LEAST_SAVED) -> int:
    """The tokens of the line that `pack` makes of one run's paths."""
    return sum(segment.end - segment.start for segment in _Tree(paths, least_saved).segments)


def _last_label(item: Tokens) -> int:
    """The place of the item's last label, 0 if it has none."""
    return next((place for place in range(len(item) - 1, 0, -1) if item.loss[place]), 0)


def _path(ids: Sequence[int]) -> TokenBytes:
    return np.array(ids, TOKEN).tobytes()


class _Segment(NamedTuple):
    """Tokens `start` to `end` of the leaves `first` to `last` (without `end` and `last`), below a parent or -1."""

    first: int
    last: int
    start: int
    end: int
    parent: int


class _Tree:
    """One run's paths as a compressed trie.

    leaves     the paths with which no longer one begins, sorted
    leaf_of    for each path, by its place in the arguments, a leaf that begins with it
    segments   a parent before its children; siblings that end in a leaf from short to long
    """

    def __init__(self, paths: Sequence[TokenBytes], least_saved: int):
        self.leaves: list[TokenBytes] = []
        self.leaf_of = [0] * len(paths)
        for index in sorted(range(len(paths)), key=paths.__getitem__):
            path = paths[index]
            if self.leaves and path.startswith(self.leaves[-1]):
                self.leaves[-1] = path
            else:
                self.leaves.append(path)
            self.leaf_of[index] = len(self.leaves) - 1
        self.segments = list(_segments(self.leaves, least_saved))


def _segments(leaves: Sequence[TokenBytes], least_saved: int) -> list[_Segment]:
    common = [common_tokens(*neighbours) for neighbours in pairwise(leaves)]
    segments: list[_Segment] = []
    to_do = [(0, len(leaves), 0, -1)]  # leaves from, to; tokens of them that stand above; the parent
    while to_do:
        first, last, start, parent = to_do.pop()
        if last - first == 1:
            segments.append(_Segment(first, last, start, len(leaves[first]) // WIDTH, parent))
            continue
        end = min(common[first : last - 1])
        cuts = [first, *(leaf for leaf in range(first + 1, last) if common[leaf - 1] == end), last]
        children = list(pairwise(cuts))
        if end > start and (end - start) * (len(children) - 1) >= least_saved * len(children):
            segments.append(_Segment(first, last, start, end, parent))
            start, parent = end, len(segments) - 1
        children.sort(key=lambda child: len(leaves[child[0]]), reverse=True)  # the stack's last is the line's next
        to_do += [(*child, start, parent) for child in children]
    return segments


def common_tokens(a: TokenBytes, b: TokenBytes) -> int:
    """The number of tokens with which both begin."""
    sizes = range(WIDTH, min(len(a), len(b)) + 1, WIDTH)
    return bisect_left(sizes, True, key=lambda size: a[:size] != b[:size])
