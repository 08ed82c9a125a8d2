"""Arrays that a kernel makes: on its thread's stack, or of what is stored at an address. None is counted or freed."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.typing.npydecl import parse_dtype, parse_shape
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

LINE = 64  # bytes of a line of the cache
STACK = 3 * 2**19  # bytes of its thread's stack that a kernel's arrays may take together: threads have 2 MiB, or more


def _array(context: Any, builder: Any, kind: Any, widths: list[Any], place: Any) -> Any:
    """An array of these widths at place(count), its elements one after another."""
    word, size = context.get_value_type(types.intp), kind.dtype.bitwidth // 8
    strides, count = [word(size)], widths[-1]
    for width in widths[-2::-1]:
        strides.insert(0, builder.mul(count, word(size)))
        count = builder.mul(count, width)
    array = context.make_array(kind)(context, builder)
    populate_array(array, data=place(count), shape=widths, strides=strides, itemsize=word(size), meminfo=None)
    return array._getvalue()


def _widths(builder: Any, kind: Any, shape: Any) -> list[Any]:
    return cgutils.unpack_tuple(builder, shape) if kind.ndim > 1 else [shape]


def _room(_, shape, dtype):
    kind = types.Array(parse_dtype(dtype), parse_shape(shape), "C")

    def code(context, builder, signature, values):
        def place(count: Any) -> Any:
            data = builder.alloca(context.get_data_type(kind.dtype), count)
            data.align = LINE
            return data

        return _array(context, builder, kind, _widths(builder, kind, values[0]), place)

    return kind(shape, dtype), code


def _stored(_, address, shape, like):
    kind = types.Array(like.dtype, parse_shape(shape), "C")

    def code(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], context.get_data_type(kind.dtype).as_pointer())
        first, *others = _widths(builder, kind, values[1])
        nothing = builder.icmp_signed("==", values[0], values[0].type(0))
        widths = [builder.select(nothing, first.type(0), first), *others]
        return _array(context, builder, kind, widths, lambda _: pointer)

    return kind(types.intp, shape, like), code


room: Any = intrinsic(_room)
"""room(shape, dtype): as np.empty, until the kernel that has it returns. Not within a loop: each call takes more."""
stored: Any = intrinsic(_stored)
"""stored(address, shape, like): what is there, of the type that `like` has; without any row where the address is 0."""
