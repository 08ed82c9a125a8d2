"""Products of a weight and the states of several tokens, by instructions that multiply and add pairs of bf16.

While tokens are few, torch takes longer to rearrange the weight than to multiply with it. Here it is read as it lies:
a tile of its rows at a time, each pair of their numbers for all tokens at once, while the next tile is fetched.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from halka.kernels.arrays import STACK, room
from halka.kernels.compiled import kernel
from halka.kernels.numbers import narrowed, widened
from halka.kernels.threads import parallel, part

LANES = 16  # tokens of a register
TILE = 12  # rows of a weight: their sums, for two registers of tokens, are all but eight of a processor's registers
WIDEST = STACK // (2 * 2 * LANES + 2 * TILE)  # numbers of a state: on its stack a thread has two registers' and a tile


def _has_pairs() -> bool:
    """Whether this processor has the instructions, and none for whole tiles, by which torch is faster."""
    features = llvm.get_host_cpu_features()
    return llvm.llvm_version_info >= (16,) and features.get("avx512bf16", False) and not features.get("amx-bf16", False)


PAIRS = _has_pairs()


class _BFloat(ir.Type):
    def _to_string(self) -> str:
        return "bfloat"


INT, LONG, BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
SUMS, WORDS, BF16 = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(INT, LANES), ir.VectorType(_BFloat(), 32)


def spread(builder: Any, number: Any, kind: Any) -> Any:
    """A register that holds the number in every lane."""
    vector = builder.insert_element(ir.Constant(kind, ir.Undefined), number, INT(0))
    return builder.shuffle_vector(vector, vector, ir.Constant(WORDS, [0] * LANES))


def _tile(registers: int) -> Any:
    """tile(x, w, last, pairs, out), of addresses: out = W xᵀ for `registers` · LANES tokens.

    x    (pairs, tokens), of two bf16 each    w  (last + 1, pairs), likewise; after its last row come copies of it
    out  (TILE, tokens) fp32
    """

    def code(context, builder, _, values):
        x, w, last, pairs, out = values

        def declared(name: str, result: Any, *arguments: Any) -> Any:
            return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)

        def at(address: Any, number: Any, size: int, kind: Any) -> Any:
            place = builder.add(address, builder.mul(number, LONG(size)))
            return builder.inttoptr(place, kind.as_pointer())

        fetch = declared("llvm.prefetch.p0", ir.VoidType(), BYTES, INT, INT, INT)
        multiply = declared("llvm.x86.avx512bf16.dpbf16ps.512", SUMS, SUMS, BF16, BF16)
        starts = []
        for row in map(LONG, range(TILE)):
            kept = builder.select(builder.icmp_signed("<", row, last), row, last)
            starts.append(builder.add(w, builder.mul(builder.mul(kept, pairs), LONG(4))))
        following = builder.add(w, builder.mul(pairs, LONG(4 * TILE)))
        sums = [[cgutils.alloca_once_value(builder, ir.Constant(SUMS, None)) for _ in range(registers)] for _ in starts]
        with cgutils.for_range(builder, pairs) as loop:
            pair = loop.index
            builder.call(fetch, [at(following, pair, 4 * TILE, ir.IntType(8)), INT(0), INT(3), INT(1)])
            first = builder.mul(pair, LONG(registers))
            places = [builder.add(first, LONG(register)) for register in range(registers)]
            states = [builder.bitcast(builder.load(at(x, it, 64, WORDS), align=64), BF16) for it in places]
            for start, own in zip(starts, sums, strict=True):
                vector = spread(builder, builder.load(at(start, pair, 4, INT), align=2), WORDS)
                for total, state in zip(own, states, strict=True):
                    product = builder.call(multiply, [builder.load(total), state, builder.bitcast(vector, BF16)])
                    builder.store(product, total)
        for number, total in enumerate(total for own in sums for total in own):
            builder.store(builder.load(total), at(out, LONG(number), 64, SUMS), align=4)
        return context.get_dummy_value()

    return intrinsic(lambda _, x, w, last, pairs, out: (types.void(x, w, last, pairs, out), code))


_tile_of_one, tile_of_two = _tile(1), _tile(2)


def as_bf16(rows_OI: Any, out_OI: Any) -> Any:
    """The address of the rows in bf16: their own, or that of `out`, which int8 ones are written to."""
    raise NotImplementedError


@overload(as_bf16, inline="always")
def _as_bf16(rows_OI, out_OI):
    if rows_OI.dtype == types.int8:
        return lambda rows_OI, out_OI: _whole_numbers(rows_OI, out_OI)
    return lambda rows_OI, out_OI: rows_OI.ctypes.data


@kernel
def _whole_numbers(rows_OI, out_OI):
    for o in range(rows_OI.shape[0]):
        row, out = rows_OI[o], out_OI[o]
        for i in range(row.shape[0]):
            out[i] = np.uint16(np.float32(row[i]).view(np.uint32) >> np.uint32(16))  # whole numbers to 256 are exact
    return out_OI.ctypes.data


@kernel
def _multiply(x_NI, W_OI, scale_O, bias_O, begin, end, y_NO):
    """y = F.linear(x, W) * scale + bias, of two registers of tokens at most, at these tiles' outputs."""
    tokens, width, pairs = x_NI.shape[0], W_OI.shape[0], x_NI.shape[1] // 2
    lanes = LANES if tokens <= LANES else 2 * LANES
    packed, sums = room(pairs * lanes, np.uint32), room((TILE, lanes), np.float32)
    tile = room((TILE, 2 * pairs), np.uint16)
    for n in range(tokens):
        x = x_NI[n].view(np.uint32)
        for pair in range(pairs):
            packed[pair * lanes + n] = x[pair]
    for low in range(begin * TILE, min(end * TILE, width), TILE):
        rows = W_OI[low : low + TILE]
        addresses = packed.ctypes.data, as_bf16(rows, tile), rows.shape[0] - 1, pairs, sums.ctypes.data
        if lanes == LANES:
            _tile_of_one(*addresses)
        else:
            tile_of_two(*addresses)
        for o in range(scale_O[low : low + TILE].shape[0]):
            for n in range(tokens):
                sums[o, n] *= scale_O[low + o]
        for o in range(bias_O[low : low + TILE].shape[0]):
            for n in range(tokens):
                sums[o, n] += widened(bias_O[low + o])
        for n in range(tokens):
            y = y_NO[n, low : low + TILE]
            for o in range(y.shape[0]):
                y[o] = narrowed(sums[o, n], y_NO)


@kernel
def _products(thread, threads, x_NI, W_OI, scale_O, bias_O, y_NO):
    begin, end = part((W_OI.shape[0] + TILE - 1) // TILE, thread, threads)
    for n in range(0, x_NI.shape[0], 2 * LANES):
        _multiply(x_NI[n : n + 2 * LANES], W_OI, scale_O, bias_O, begin, end, y_NO[n : n + 2 * LANES])


@kernel
def products(threads, x_NI, W_OI, scale_O, bias_O, y_NO):
    """y = F.linear(x, W) * scale + bias, all bf16, or W int8; scale (fp32) and bias without any element for none.

    Where PAIRS is true, and I even and at most WIDEST.
    """
    parallel(_products, threads, (x_NI, W_OI, scale_O, bias_O, y_NO))
