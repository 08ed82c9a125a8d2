"""Kernels on torch's own threads: a pool of numba's would wait for torch's, and torch's for it.

A kernel that runs on several threads is two functions: one computes a thread's share of the work, and begins with
`thread, threads`; the other calls `parallel` with it. The threads are those of the OpenMP that torch is linked to
(GNU's, or LLVM's, which has the same entry); where torch has another, one thread does it all.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from halka.kernels.compiled import kernel

SPINS = 4000  # looks at a gate, some ten microseconds, before a thread lets others have its core
ENTRIES = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "sched_yield")
INT, BYTES, NOTHING = ir.IntType(32), ir.IntType(8).as_pointer(), ir.VoidType()


def _entries() -> bool:
    """Name the entries of torch's OpenMP for compiled code. Returns whether torch has them."""
    library = ctypes.CDLL(torch._C.__file__)  # looks in the libraries that torch is linked to
    try:
        addresses = {name: ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in ENTRIES}
    except AttributeError:
        return False
    for name, address in addresses.items():
        llvm.add_symbol(f"halka_{name}", address)
    return True


SEVERAL = _entries()


def _entry(module: Any, name: str, result: Any, *arguments: Any) -> Any:
    return cgutils.get_or_insert_function(module, ir.FunctionType(result, arguments), f"halka_{name}")


def _parallel(typing, share, threads, arguments):
    signature = share.get_call_type(typing, (types.intp, types.intp, *arguments.types), {})

    def code(context, builder, _, values):
        compiled = share.dispatcher.get_compile_result(signature)
        context.active_code_library.add_linking_library(compiled.library)
        module, word = builder.module, context.get_value_type(types.intp)
        function = context.declare_function(module, compiled.fndesc)

        def call(builder, thread, threads, own):
            order = [thread, threads, *own]
            context.call_conv.call_function(builder, function, signature.return_type, signature.args, order)

        own = cgutils.unpack_tuple(builder, values[2])
        if not SEVERAL:
            call(builder, word(0), word(1), own)
            return context.get_dummy_value()
        struct = ir.LiteralStructType([value.type for value in own])
        packed = cgutils.alloca_once(builder, struct)
        builder.store(cgutils.pack_struct(builder, own), packed)
        region = ir.Function(module, ir.FunctionType(NOTHING, [BYTES]), module.get_unique_name("region"))
        region.linkage = "internal"
        inner = ir.IRBuilder(region.append_basic_block())
        names = ("omp_get_thread_num", "omp_get_num_threads")
        thread, count = (inner.sext(inner.call(_entry(module, name, INT), []), word) for name in names)
        own = cgutils.unpack_tuple(inner, inner.load(inner.bitcast(region.args[0], struct.as_pointer())))
        call(inner, thread, count, own)
        inner.ret_void()
        start = _entry(module, "GOMP_parallel", NOTHING, region.type, BYTES, INT, INT)
        builder.call(start, [region, builder.bitcast(packed, BYTES), builder.trunc(values[1], INT), INT(0)])
        return context.get_dummy_value()

    return types.void(share, threads, arguments), code


parallel: Any = intrinsic(_parallel)
"""parallel(share, threads, arguments): share(thread, threads, *arguments) on that many threads, or fewer."""


@kernel
def part(count, thread, threads):
    """The first of a thread's things, and the one after its last, of `count` things."""
    return count * thread // threads, count * (thread + 1) // threads


def _fetch_add(_, address, value):
    def code(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, values[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


def _load(_, address):
    def code(context, builder, signature, values):
        pointer = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), code


def _give_way(_):
    def code(context, builder, signature, values):
        if SEVERAL:
            builder.call(_entry(builder.module, "sched_yield", INT), [])
        return context.get_dummy_value()

    return types.void(), code


fetch_add: Any = intrinsic(_fetch_add)
load: Any = intrinsic(_load)
give_way: Any = intrinsic(_give_way)


@kernel
def meet(gate, threads):
    """Wait until all threads of a region are here. gate: (1,) int64, 0 at the region's start, of all its threads."""
    address = gate.ctypes.data
    arrived = (fetch_add(address, 1) // threads + 1) * threads
    spins = 0
    while load(address) < arrived:
        spins += 1
        if spins > SPINS:
            give_way()
