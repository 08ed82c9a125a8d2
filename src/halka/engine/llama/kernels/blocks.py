"""Products with a block of keys or values, its SIZE tokens at once.

The values of a block are read once for the query heads that share them. Scores of 16 tokens come out in one register
where the processor multiplies pairs of bf16 (`products.PAIRS`). Bases in fp32 go token by token.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from halka.engine.llama.kernels.products import BF16, LANES, LONG, PAIRS, SUMS, WORDS, spread
from halka.kernels.compiled import kernel
from halka.kernels.numbers import dot, widened
from halka.models.attention.paged import SIZE

STEP = 2 * LANES  # numbers of a head that a register of bf16 holds
assert SIZE == LANES, "a block's tokens are the numbers of a register of fp32"


def _within_quarters(*places: int) -> ir.Constant:
    """A selection of numbers of two registers: of each quarter these, where the second register's begin at LANES."""
    return ir.Constant(WORDS, [place + quarter for quarter in range(0, LANES, 4) for place in places])


def _quarters(*starts: int) -> ir.Constant:
    """A selection of whole quarters of two registers."""
    return ir.Constant(WORDS, [start + place for start in starts for place in range(4)])


_SUMMED = (  # of two registers one, whose numbers are sums of two of theirs; of 16 one, in four rounds
    (_within_quarters(0, 16, 1, 17), _within_quarters(2, 18, 3, 19)),
    (_within_quarters(0, 1, 16, 17), _within_quarters(2, 3, 18, 19)),
    (_quarters(0, 8, 16, 24), _quarters(4, 12, 20, 28)),
    (_quarters(0, 8, 16, 24), _quarters(4, 12, 20, 28)),
)


def _at(builder: Any, address: Any, offset: Any, kind: Any) -> Any:
    return builder.inttoptr(builder.add(address, offset), kind.as_pointer())


def _scores(_, q, keys, steps, out):
    """_scores(q, keys, steps, out), of addresses: out (16,) fp32 = keys (16, 32 · steps) @ q (32 · steps,), of bf16."""

    def code(context, builder, signature, values):
        q, keys, steps, out = values
        function = ir.FunctionType(SUMS, [SUMS, BF16, BF16])
        multiply = cgutils.get_or_insert_function(builder.module, function, "llvm.x86.avx512bf16.dpbf16ps.512")
        size = LONG(2 * STEP)
        row = builder.mul(steps, size)
        sums = [cgutils.alloca_once_value(builder, ir.Constant(SUMS, None)) for _ in range(LANES)]
        with cgutils.for_range(builder, steps) as loop:
            place = builder.mul(loop.index, size)
            own = builder.bitcast(builder.load(_at(builder, q, place, WORDS), align=2), BF16)
            for token, total in enumerate(sums):
                there = builder.add(place, builder.mul(row, LONG(token)))
                key = builder.bitcast(builder.load(_at(builder, keys, there, WORDS), align=2), BF16)
                builder.store(builder.call(multiply, [builder.load(total), key, own]), total)
        vectors = [builder.load(total) for total in sums]
        for first, second in _SUMMED:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [builder.fadd(*(builder.shuffle_vector(a, b, it) for it in (first, second))) for a, b in pairs]
        builder.store(vectors[0], _at(builder, out, LONG(0), SUMS), align=4)
        return context.get_dummy_value()

    return types.void(q, keys, steps, out), code


def _add_values(heads: int) -> Any:
    """add(weights, row, values, width, sums), of addresses: sums += weights @ values.

    weights  (heads, 16)    values  (16, width)    sums  (heads, width)

    A head's weights are `row` bytes after the one's before it. Two values, of bf16, lie in a word: the sums of the even
    ones and of the odd ones are kept apart.
    """

    def code(context, builder, signature, arguments):
        weights, row, values, width, sums = arguments
        evens, odds = ([2 * lane + odd for lane in range(LANES)] for odd in (0, 1))
        firsts = [place // 2 + LANES * (place % 2) for place in range(LANES)]
        seconds = [place + LANES // 2 for place in firsts]
        evens, odds, firsts, seconds = (ir.Constant(WORDS, order) for order in (evens, odds, firsts, seconds))
        sixteen, upper = (ir.Constant(WORDS, [number] * LANES) for number in (16, 0xFFFF0000))
        with cgutils.for_range(builder, builder.udiv(width, LONG(STEP))) as loop:
            first = builder.mul(loop.index, LONG(STEP))
            totals, places = [], []
            for head in range(heads):
                start = builder.mul(builder.add(first, builder.mul(width, LONG(head))), LONG(4))
                places += [_at(builder, sums, builder.add(start, LONG(half)), SUMS) for half in (0, 4 * LANES)]
                both = [builder.load(place, align=4) for place in places[-2:]]
                totals += [builder.shuffle_vector(*both, order) for order in (evens, odds)]
            for token in range(LANES):
                there = builder.mul(builder.add(first, builder.mul(width, LONG(token))), LONG(2))
                pair = builder.load(_at(builder, values, there, WORDS), align=2)
                two = [builder.bitcast(it, SUMS) for it in (builder.shl(pair, sixteen), builder.and_(pair, upper))]
                for head in range(heads):
                    there = builder.add(builder.mul(row, LONG(head)), LONG(4 * token))
                    vector = spread(builder, builder.load(_at(builder, weights, there, ir.FloatType())), SUMS)
                    for half, value in enumerate(two):
                        product = builder.fmul(value, vector, flags=["contract"])
                        totals[2 * head + half] = builder.fadd(totals[2 * head + half], product, flags=["contract"])
            for head in range(heads):
                both = totals[2 * head : 2 * head + 2]
                for place, order in zip(places[2 * head : 2 * head + 2], (firsts, seconds), strict=True):
                    builder.store(builder.shuffle_vector(*both, order), place, align=4)
        return context.get_dummy_value()

    def typed(_, weights, row, values, width, sums):
        return types.void(weights, row, values, width, sums), code

    return intrinsic(typed)


def _highest(_, scores):
    """_highest(scores), of an address: the greatest of 16 fp32, which are numbers."""

    def code(context, builder, signature, values):
        function = ir.FunctionType(ir.FloatType(), [SUMS])
        highest = cgutils.get_or_insert_function(builder.module, function, "llvm.vector.reduce.fmax.v16f32")
        return builder.call(highest, [builder.load(_at(builder, values[0], LONG(0), SUMS), align=4)], fastmath=["nnan"])

    return types.float32(scores), code


def _fetch(_, address, size):
    """fetch(address, size): bring so many bytes nearer, while others are computed with."""

    def code(context, builder, signature, values):
        address, size = values
        byte = ir.IntType(8)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer(), ir.IntType(32), ir.IntType(32), ir.IntType(32)])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        with cgutils.for_range(builder, builder.udiv(size, LONG(64))) as loop:
            place = _at(builder, address, builder.mul(loop.index, LONG(64)), byte)
            builder.call(prefetch, [place, ir.IntType(32)(0), ir.IntType(32)(2), ir.IntType(32)(1)])
        return context.get_dummy_value()

    return types.void(address, size), code


fetch: Any = intrinsic(_fetch)
_scores_of_16: Any = intrinsic(_scores)
highest_of_16: Any = intrinsic(_highest)
_add_values_1, _add_values_2, _add_values_3, _add_values_4 = map(_add_values, (1, 2, 3, 4))


@kernel
def _token_scores(q_W, keys_SW, out_S):
    for j in range(SIZE):
        out_S[j] = dot(keys_SW[j], q_W)


@kernel
def _block_scores(q_W, keys_SW, out_S):
    if q_W.shape[0] % STEP == 0:
        _scores_of_16(q_W.ctypes.data, keys_SW.ctypes.data, q_W.shape[0] // STEP, out_S.ctypes.data)
    else:
        _token_scores(q_W, keys_SW, out_S)


def scores(q_W: Any, keys_SW: Any, out_S: Any) -> None:
    """out = keys @ q, in fp32."""
    raise NotImplementedError


@overload(scores, inline="always")
def _scores_by_kind(q_W, keys_SW, out_S):
    if PAIRS and q_W.dtype == types.uint16 and keys_SW.dtype == types.uint16:
        return lambda q_W, keys_SW, out_S: _block_scores(q_W, keys_SW, out_S)
    return lambda q_W, keys_SW, out_S: _token_scores(q_W, keys_SW, out_S)


@kernel
def _add_block_values(weights_GS, values_SW, sums_GW):
    (heads, width), row = sums_GW.shape, weights_GS.strides[0]
    if width % STEP:
        _add_token_values(weights_GS, values_SW, sums_GW)
        return
    for g in range(0, heads, 4):
        weights, sums, left = weights_GS[g:].ctypes.data, sums_GW[g:].ctypes.data, heads - g
        if left == 1:
            _add_values_1(weights, row, values_SW.ctypes.data, width, sums)
        elif left == 2:
            _add_values_2(weights, row, values_SW.ctypes.data, width, sums)
        elif left == 3:
            _add_values_3(weights, row, values_SW.ctypes.data, width, sums)
        else:
            _add_values_4(weights, row, values_SW.ctypes.data, width, sums)


@kernel
def _add_token_values(weights_GS, values_SW, sums_GW):
    for g in range(sums_GW.shape[0]):
        sums = sums_GW[g]
        for j in range(SIZE):
            weight, value = weights_GS[g, j], values_SW[j]
            for i in range(sums.shape[0]):
                sums[i] += weight * widened(value[i])


def add_values(weights_GS: Any, values_SW: Any, sums_GW: Any) -> None:
    """sums += weights @ values, in fp32; a value whose weight is 0 must be a number all the same."""
    raise NotImplementedError


@overload(add_values, inline="always")
def _add_values_by_kind(weights_GS, values_SW, sums_GW):
    if values_SW.dtype == types.uint16:
        return lambda weights_GS, values_SW, sums_GW: _add_block_values(weights_GS, values_SW, sums_GW)
    return lambda weights_GS, values_SW, sums_GW: _add_token_values(weights_GS, values_SW, sums_GW)
