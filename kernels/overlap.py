"""Spearman's rho of two genes over the cells that hold both (appendix A.4, lines 22 to 26).

The commoner gene is written once into a dense column of levels (0 = absent); its partners' sparse columns stream past,
sixteen cells at a time where the CPU can leave the absent out of a vector:

    common gene   level in every cell:    | 0 | 7 | 3 | 0 | 5 |
    partner       cells 1 3 4, levels 2 6 6   →   overlap: (7, 2) (5, 6)

Levels are small integers, so ranks within the overlap come from counting. With n cells in the overlap, a level that c
of them have, and b below it, has the doubled rank r = 2·b + c; d = r - n is centred. As the sum of r is n²,

    sum d_u·d_v = sum r_u·r_v - n³        sum d² = (n³ - sum of c³ over levels) / 3

    rho = sum d_u·d_v / sqrt(sum d_u² · sum d_v²), or 0 where either gene is constant over the overlap

All sums are exact, in 64 bits. Where r fits 16 bits, four counts share a word: a table of 2 048 levels takes 4 KiB, and
the words are ranked all at once. What is left is one load or store after the other: counting stores twice for each cell
of the overlap, and CPUs store once a cycle. Assumed: little-endian, as every CPU that Numba supports.

Work split: a task is a range of pairs, which lie sorted by their common gene. Scratch: one dense column a task.
"""

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .bits import prefetch
from .jit import inline, kernel, stage

LOW, S16, S32, S48 = np.uint32(0xFFFF), np.uint64(16), np.uint64(32), np.uint64(48)
ONE, ONE_EACH = np.uint64(1), np.uint64(0x0001_0001_0001_0001)
NARROW = 2**15 - 1  # the largest overlap whose doubled ranks take 16 bits
SIXTEEN = 16  # cells in a vector
# One instruction leaves cells out of a vector, where the CPU has it (x86: vpcompressd) and LLVM knows of it.
IN_VECTORS = bool(
    llvmlite.binding.get_host_cpu_features().get("avx512f") and llvmlite.binding.llvm_version_info >= (20,)
)
I1, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 16, 32, 64))


@intrinsic
def opaque(typingctx, x):
    """Return the integer ``x``, of which the compiler no longer knows where it comes from."""

    def codegen(context, builder, signature, args):
        kind = args[0].type
        return builder.asm(ir.FunctionType(kind, [kind]), "", "=r,0", args, side_effect=False)

    return x(x), codegen


@intrinsic
def append_sixteen(typingctx, dense, cells, levels, k, both, at):
    """Append to ``both`` at ``at`` those of the partner's cells [k, k + 16) that hold the common gene; return the end.

    ``dense`` is read two bytes beyond each cell, ``both`` written up to ``at`` + 16.
    """
    signature = types.int64(dense, cells, levels, types.int64, both, types.int64)

    def codegen(context, builder, signature, args):
        def at_index(array, index):
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            return cgutils.gep(builder, data, index)

        def vector_at(array, index, kind):
            return builder.bitcast(at_index(array, index), ir.VectorType(kind, SIXTEEN).as_pointer())

        words, flags = ir.VectorType(I32, SIXTEEN), ir.VectorType(I1, SIXTEEN)
        cell = builder.load(vector_at(1, args[3], I32), align=4)
        level = builder.zext(builder.load(vector_at(2, args[3], I16), align=2), words)
        places = builder.gep(at_index(0, I64(0)), [cell], source_etype=I16)
        places.type = ir.VectorType(places.type, SIXTEEN)  # an address for each cell: llvmlite takes it for one
        kind = ir.FunctionType(words, [places.type, I32, flags, words])
        gather = cgutils.get_or_insert_function(builder.module, kind, "llvm.masked.gather.v16i32.v16p0")
        every = ir.Constant(flags, [1] * SIXTEEN)
        common = builder.call(gather, [places, I32(2), every, ir.Constant(words, ir.Undefined)])
        common = builder.shl(common, ir.Constant(words, [16] * SIXTEEN))
        present = builder.icmp_unsigned("!=", common, ir.Constant(words, [0] * SIXTEEN))
        kind = ir.FunctionType(words, [words, flags, words])
        compress = cgutils.get_or_insert_function(builder.module, kind, "llvm.experimental.vector.compress.v16i32")
        kept = builder.call(compress, [builder.or_(common, level), present, ir.Constant(words, ir.Undefined)])
        builder.store(kept, vector_at(4, args[5], I32), align=4)
        count = builder.zext(builder.ctpop(builder.bitcast(present, I16)), I64)
        return builder.add(args[5], count)

    return signature, codegen


@stage
def find_in_vectors(dense, cells, levels, begin, end, both, coming, coming_end):
    """Write the partner's overlap with the common gene to ``both``; return its size.

    The partner's column is [begin, end). [coming, coming_end) is the column after it, whose memory is asked for.
    """
    at = 0
    while begin + SIXTEEN <= end:
        prefetch(cells, coming)
        prefetch(levels, coming)
        coming = min(coming + SIXTEEN, coming_end)
        at = append_sixteen(dense, cells, levels, begin, both, at)
        begin += SIXTEEN
    return append_one_by_one(dense, cells[begin:end], levels[begin:end], both, at)


@stage
def find_one_by_one(dense, cells, levels, begin, end, both, coming, coming_end):
    """Do the same on any CPU."""
    return append_one_by_one(dense, cells[begin:end], levels[begin:end], both, 0)


find_overlap = find_in_vectors if IN_VECTORS else find_one_by_one


@stage
def append_one_by_one(dense, cells, levels, both, at):
    """Append to ``both`` at ``at`` those of a partner's cells that hold the common gene; return the end."""
    # Slices and unsigned indices spare a look at the index's sign for every element.
    end = np.uint64(at)
    for k in range(cells.size):
        level = np.uint32(dense[np.uint32(cells[k])])
        both[end] = (level << np.uint32(16)) | np.uint32(levels[k])  # written over by the next if absent: no branch
        end += np.uint64(level != 0)
    return np.int64(end)


@stage
def count_levels(both, n, table_u, table_v):
    """Count the levels of either gene."""
    for k in range(n):
        pair = both[k]
        table_u[pair >> np.uint32(16)] += ONE
        table_v[pair & LOW] += ONE


@inline
def sum_cubes(counts):
    """Return the sum of c³."""
    cubes = np.uint64(0)
    for level in range(counts.size):
        count = np.uint64(counts[level])
        cubes += count * count * count
    return np.int64(cubes)


@stage
def rank_in_words(words, sums):
    """Turn counts, four to a word, into doubled ranks; ``sums`` is scratch, a number of 16 bits for each word."""
    sum_of = sums.view(np.uint16)
    for i in range(words.size):
        counts = words[i]
        upto = counts + (counts << S16)
        upto += upto << S32
        words[i] = (upto << np.uint64(1)) - counts
        sum_of[i] = upto >> S48
    below = np.uint64(0)
    for i in range(sums.size):
        counts = sums[i]
        upto = counts + (counts << S16)
        upto += upto << S32
        sums[i] = upto - counts + below * ONE_EACH
        below += upto >> S48
    for i in range(words.size):
        words[i] += np.uint64(sum_of[i]) * (ONE_EACH + ONE_EACH)


@stage
def rank_one_by_one(table):
    """Turn counts into doubled ranks."""
    below = np.uint64(0)
    for level in range(table.size):
        count = table[level]
        table[level] = below + below + count
        below += count


@inline
def product(levels, k, rank_u, rank_v):
    """Return r_u·r_v of an overlap cell."""
    # LLVM would run the sum in vectors, and gathering is slower than loading.
    return np.uint64(rank_u[opaque(np.uint64(levels[2 * k + 1]))]) * np.uint64(rank_v[np.uint64(levels[2 * k])])


@stage
def sum_products(both, n, rank_u, rank_v):
    """Return the sum of r_u·r_v, modulo 2⁶⁴."""
    levels, total = both.view(np.uint16), np.uint64(0)
    whole = n - n % 4
    for k in range(0, whole, 4):
        a, b = product(levels, k, rank_u, rank_v), product(levels, k + 1, rank_u, rank_v)
        c, d = product(levels, k + 2, rank_u, rank_v), product(levels, k + 3, rank_u, rank_v)
        total += (a + b) + (c + d)
    for k in range(whole, n):
        total += product(levels, k, rank_u, rank_v)
    return np.int64(total)


@stage
def correlate(both, n, words_u, words_v, sums):
    """Return rho over an overlap whose doubled ranks take 16 bits; the tables come zeroed, and go so."""
    table_u, table_v = words_u.view(np.uint16), words_v.view(np.uint16)
    count_levels(both, n, table_u, table_v)
    cubes_u, cubes_v = sum_cubes(table_u), sum_cubes(table_v)
    rank_in_words(words_u, sums)
    rank_in_words(words_v, sums)
    total = sum_products(both, n, table_u, table_v)
    words_u[:] = 0
    words_v[:] = 0
    return rho_of(n, total, cubes_u, cubes_v)


@stage
def correlate_wide(both, n, table_u, table_v):
    """Do the same for an overlap of any size."""
    count_levels(both, n, table_u, table_v)
    cubes_u, cubes_v = sum_cubes(table_u), sum_cubes(table_v)
    rank_one_by_one(table_u)
    rank_one_by_one(table_v)
    total = sum_products(both, n, table_u, table_v)
    table_u[:] = 0
    table_v[:] = 0
    return rho_of(n, total, cubes_u, cubes_v)


@inline
def rho_of(n, products, cubes_u, cubes_v):
    """Return rho from sums over n cells."""
    cube = n * n * n
    squares_u, squares_v = (cube - cubes_u) // 3, (cube - cubes_v) // 3
    if squares_u == 0 or squares_v == 0:
        return 0.0
    return np.float64(products - cube) / np.sqrt(np.float64(squares_u) * np.float64(squares_v))


@stage
def write_common(dense, cells, levels):
    """Write a gene's levels into the dense column."""
    for k in range(cells.size):
        dense[np.uint32(cells[k])] = levels[k]


@stage
def erase_common(dense, cells):
    """Make the dense column zero again."""
    if 16 * cells.size > dense.size:
        dense[:] = 0
    else:
        for k in range(cells.size):
            dense[np.uint32(cells[k])] = 0


@kernel
def correlate_overlaps(
    common, partner, begin, end, indptr, cells, levels, n_cells, max_length, min_cooccurrence, overlap, rho
):
    """Write ``overlap`` and ``rho`` of pairs [begin, end), sorted by ``common``; rho 0 below ``min_cooccurrence``."""
    dense = np.zeros(n_cells + 1, np.uint16)
    longest = 0
    for i in range(begin, end):
        longest = max(longest, indptr[partner[i] + 1] - indptr[partner[i]])
    both = np.empty(longest + SIXTEEN, np.uint32)  # the overlap: level of the common gene, then of the partner
    words_u, words_v = np.zeros(max_length // 4 + 1, np.uint64), np.zeros(max_length // 4 + 1, np.uint64)
    sums = np.zeros(words_u.size // 4 + 1, np.uint64)
    size = max_length + 1 if longest > NARROW else 0
    wide_u, wide_v = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    current = -1
    for i in range(begin, end):
        if common[i] != current:
            if current >= 0:
                erase_common(dense, cells[indptr[current] : indptr[current + 1]])
            current = common[i]
            column = slice(indptr[current], indptr[current + 1])
            write_common(dense, cells[column], levels[column])
        coming = partner[i]  # the next column, whose memory is asked for while this one passes
        if i + 1 < end:
            coming = partner[i + 1] if common[i + 1] == current else common[i + 1]
        a, b = indptr[partner[i]], indptr[partner[i] + 1]
        n = find_overlap(dense, cells, levels, a, b, both, indptr[coming], indptr[coming + 1])
        overlap[i] = n
        rho[i] = 0.0
        if n < min_cooccurrence:
            continue
        if n <= NARROW:
            rho[i] = correlate(both, n, words_u, words_v, sums)
        else:
            rho[i] = correlate_wide(both, n, wide_u, wide_v)
