"""The keys and values of a text, out of its blocks, for products over all of them."""

from __future__ import annotations

from halka.engine.llama.kernels.compiled import kernel
from halka.engine.llama.kernels.threads import parallel, part


@kernel
def _collect(thread, threads, kv, layer, blocks, ends, keys_HCW, values_HCW):
    heads, width = kv.shape[3], kv.shape[5]
    for m in range(*part(blocks.shape[0], thread, threads)):
        begin = ends[m - 1] if m > 0 else 0
        for head in range(heads):
            keys, values = kv[blocks[m], layer, 0, head], kv[blocks[m], layer, 1, head]
            for j in range(ends[m] - begin):
                key, value = keys_HCW[head, begin + j], values_HCW[head, begin + j]
                for i in range(width):
                    key[i] = keys[j, i]
                    value[i] = values[j, i]


@kernel
def collect(threads, kv, layer, blocks, ends, keys_HCW, values_HCW):
    """keys, values = KVBlocks.read(layer, blocks[None]), of the slots that are filled.

    blocks  (M,)    ends  (M,) how many slots are filled up to the end of each block
    """
    parallel(_collect, threads, (kv, layer, blocks, ends, keys_HCW, values_HCW))
