"""`Text`: a prompt and its answer so far, as the engine computes it, and its blocks in the cache."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator
from functools import cached_property

import numpy as np
from torch import Tensor

from halka.engine.cache import Block, BlockCache
from halka.engine.constraint import Matcher
from halka.engine.logprobs import TokenLogprob
from halka.engine.request import Answer
from halka.engine.sampling import Draw
from halka.engine.stopping import Reason, StoppedText
from halka.engine.version import Version
from halka.models.attention.paged import ALWAYS, SIZE, PagedText


class Text:
    """A row of the engine.

    tokens   the prompt's and the answer's
    done     how many of these have their keys and values in `blocks`
    """

    def __init__(
        self,
        answer: Answer,
        version: Version,
        number: int,
        seed: int,
        text: StoppedText,
        matcher: Matcher | None,
        longrope_start: int | None = None,
    ):
        """number: the order in which texts came. seed: of its draws. text: what its tokens become.

        matcher: what its constraint allows. longrope_start: as `models.rotary` says.
        """
        self.answer, self.version, self.number, self.seed = answer, version, number, seed
        self.tokens = [*answer.request.prompt]
        self.done = 0
        self.blocks: list[Block] = []
        self.begun = False  # it has had a row
        self._rereads = False  # its blocks were its own before
        self._first = 0  # how many of the blocks hold virtual tokens
        self._text, self._matcher, self._longrope_start = text, matcher, longrope_start
        self._long = False  # whether its blocks are those of a text beyond `longrope_start`

    @property
    def tenant(self) -> str:
        """Whose request it answers."""
        return self.answer.request.tenant

    @property
    def left(self) -> int:
        """Tokens that are to be computed before the next one is known."""
        return len(self.tokens) - self.done

    @property
    def long(self) -> bool:
        """Whether it is beyond `longrope_start`: all of its keys are turned by other frequencies then."""
        return self._longrope_start is not None and self.version.shift + len(self.tokens) > self._longrope_start

    @property
    def crossed_longrope_start(self) -> bool:
        """Whether it has come beyond `longrope_start` since its blocks were computed."""
        return self.long != self._long

    @property
    def company(self) -> tuple[str, bool]:
        """What can share a step with it."""
        return self.version.company, self.long

    @property
    def draw(self) -> Draw:
        """How its next token is chosen."""
        request, tokens = self.answer.request, self.answer.tokens
        prompt = self._in_prompt if request.sampling.penalises_repetition else ()
        return Draw(request.sampling, self.seed, len(tokens), tokens, prompt)

    @cached_property
    def _in_prompt(self) -> np.ndarray:
        """The prompt's tokens, each once."""
        return np.unique(self.answer.request.prompt)

    @property
    def reason(self) -> Reason | None:
        """Why its answer has ended; None if it goes on."""
        return self._text.reason

    @property
    def spare(self) -> int:
        """Places that its last block has left."""
        return -self.done % SIZE

    def begin(self, cache: BlockCache) -> bool:
        """Take a row, and the blocks that are there already. Returns whether there is room for the others.

        Without room it takes nothing.
        """
        self._long = self.long
        seen = self._see_virtual(cache)
        if seen:
            self.share(cache)
        if not seen or self.needs(self.left) > cache.room:
            self.drop(cache)
            return False
        if not self.begun:
            self.begun, self.answer.adapter_id = True, self.version.id
            self.answer.times.begun = time.monotonic()
            self.version.begun += 1
        return True

    def _see_virtual(self, cache: BlockCache) -> bool:
        """Take the blocks of the adapter's virtual tokens, and fill those that nobody has while there is room."""
        virtual = self.version.virtual
        count = 0 if virtual is None else len(virtual)
        for start in range(0, count, SIZE):
            key = (self._parent(len(self.blocks)), self._content, ("virtual", start))
            block = cache.find(key)
            if block is None:
                assert virtual is not None
                if not cache.room:
                    return False
                block = cache.new(ALWAYS)
                block.count = min(SIZE, count - start)
                pairs = virtual[start : start + SIZE].unflatten(1, (-1, 2))  # n L 2 H W
                cache.clear_new()
                cache.kv.data[block.number, :, :, :, : block.count] = pairs.permute(1, 2, 3, 0, 4)
                cache.name(block, key)
            self.blocks.append(block)
        self._first = len(self.blocks)
        return True

    def needs(self, count: int) -> int:
        """New blocks for the next `count` tokens."""
        return -(-(self.done + count) // SIZE) - (len(self.blocks) - self._first)

    def share(self, cache: BlockCache) -> None:
        """Take the blocks that others have computed of the same tokens; the last token stays to be computed."""
        while self.done % SIZE == 0 and self.done + SIZE < len(self.tokens):
            block = cache.find(self._key(self.done))
            if block is None:
                return
            self.blocks.append(block)
            self.done += SIZE
            if not self._rereads:
                self.answer.cached += SIZE

    def extend(self, cache: BlockCache, count: int) -> Iterator[int]:
        """Make room for the next `count` tokens, which this step computes: the slot of each.

        Blocks that they fill can be shared at once: attention writes a line's keys and values before it reads any.
        """
        for place in range(self.done, self.done + count):
            if place % SIZE == 0:
                self.blocks.append(cache.new(self.version.shift + place))
            block = self.blocks[-1]
            block.count += 1
            if block.count == SIZE:
                cache.name(block, self._key(place + 1 - SIZE))
            yield block.number * SIZE + place % SIZE

    def paged(self, count: int) -> PagedText:
        """As attention sees it in a step with `count` of its tokens."""
        blocks = self.blocks
        return PagedText(count, [b.number for b in blocks], [b.count for b in blocks], [b.begin for b in blocks])

    def allowed(self, vocabulary: int) -> Tensor | None:
        """What its next token may be, (vocabulary,) bool; None: any."""
        return None if self._matcher is None else self._matcher.mask(vocabulary)

    def take(self, token: int, logprob: TokenLogprob | None) -> None:
        """The next token of the answer, which may end with it."""
        answer = self.answer
        self.tokens.append(token)
        answer.tokens.append(token)
        if logprob is not None:
            answer.logprobs.append(logprob)
        answer.times.last = time.monotonic()
        answer.times.first = answer.times.first or answer.times.last
        answer.text += self._text.push(token)
        if self._matcher is not None and self._text.reason != "stop":
            self._matcher.accept(token)
            if self._matcher.done:
                answer.text += self._text.close("stop")

    def drop(self, cache: BlockCache) -> None:
        """Let go of all blocks; the tokens are read once more when it goes on."""
        cache.release(self.blocks)
        self.forget()

    def forget(self) -> None:
        """Have no blocks, whoever else has them now."""
        self._rereads = self.begun
        if not self.begun:  # it got no row: what it finds in the cache next time counts
            self.answer.cached = 0
        self.blocks, self.done, self._first = [], 0, 0

    @property
    def _content(self) -> Hashable:
        """What acted on its tokens."""
        return (self.version.content, "long") if self._long else self.version.content

    def _parent(self, block: int) -> int | str:
        """What this block of its continues: the serial number of the one before, or the root of the tenant."""
        return self.blocks[block - 1].serial if block else self.tenant

    def _key(self, start: int) -> tuple[int | str, Hashable, tuple[int, ...]]:
        """The key of the block of the tokens from `start` on."""
        parent = self._parent(self._first + start // SIZE)
        return parent, self._content, tuple(self.tokens[start : start + SIZE])
