"""Products of sparse columns with a panel: LANES common genes side by side, dense, one row a cell.

Each nonzero of a column multiplies one row of the panel, which runs in vectors; the sums of AT_ONCE lanes stay in
registers while a range of cells passes:

    column u:  cells 1 3 …  e 5 2 …     sums[u] += 5 · panel[1] + 2 · panel[3] + …

Cells pass in chunks whose rows of the panel stay in the L2 cache, and all columns are taken through a chunk before the
next. All sums are unsigned 64-bit integers; e takes 32 bits, so that a product is one instruction for a vector (x86:
vpmuludq). A plain loop over lanes gets no such registers from LLVM, and half the speed.

A rare column has some twenty nonzeros in a chunk, in places of memory that no hardware foresees: they and the sums are
asked for some columns ahead.

Work split: a task is one panel against any range of columns.
"""

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .bits import prefetch
from .jit import kernel

LANES = 128  # genes in a panel
# Lanes whose sums fill half of the vector registers: 32 of 8 lanes (AVX-512), or else 16 of 4 (AVX2), 32 of 2 (NEON).
AT_ONCE = 128 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 32
LINE = 64  # bytes that come from memory at once
WIDTH = 8  # lanes in a vector as it is written here; LLVM halves it where registers are smaller

I32, I64 = ir.IntType(32), ir.IntType(64)
NARROW, WIDE = ir.VectorType(I32, WIDTH), ir.VectorType(I64, WIDTH)


@intrinsic
def add_rows(typingctx, cells, e, begin, end, panel, first_lane, sums, row):
    """sums[row, lanes] += e[k] · panel[cells[k], lanes] for k in [begin, end) and AT_ONCE lanes from ``first_lane``.

    ``cells`` int32, ``e`` uint32, ``panel`` (n_cells, LANES) uint32, ``sums`` (columns, LANES) uint64, all contiguous.
    """
    signature = types.void(cells, e, types.int64, types.int64, panel, types.int64, sums, types.int64)

    def codegen(context, builder, signature, args):
        def data(i):
            return context.make_array(signature.args[i])(context, builder, args[i]).data

        def constant(value):
            return ir.Constant(I64, value)

        def vector_at(pointer, kind, j):
            return builder.bitcast(builder.gep(pointer, [constant(WIDTH * j)]), kind.as_pointer())

        def lanes_of(pointer, row):
            return builder.gep(pointer, [builder.add(builder.mul(row, constant(LANES)), args[5])])

        vectors = range(AT_ONCE // WIDTH)
        cell_at, e_at, panel_at = data(0), data(1), data(4)
        out = [vector_at(lanes_of(data(6), args[7]), WIDE, j) for j in vectors]
        sums = [cgutils.alloca_once(builder, WIDE) for _ in vectors]  # LLVM turns these into registers
        for slot, place in zip(sums, out, strict=True):
            builder.store(builder.load(place, align=8), slot)
        with cgutils.for_range_slice(builder, args[2], args[3], constant(1)) as (k, _):
            cell = builder.sext(builder.load(builder.gep(cell_at, [k])), I64)
            x = builder.zext(builder.load(builder.gep(e_at, [k])), I64)
            x = builder.insert_element(ir.Constant(WIDE, ir.Undefined), x, ir.Constant(I32, 0))
            x = builder.shuffle_vector(x, x, ir.Constant(ir.VectorType(I32, WIDTH), [0] * WIDTH))
            lanes = lanes_of(panel_at, cell)
            for j, slot in enumerate(sums):
                y = builder.zext(builder.load(vector_at(lanes, NARROW, j), align=4), WIDE)
                builder.store(builder.add(builder.load(slot), builder.mul(x, y)), slot)
        for slot, place in zip(sums, out, strict=True):
            builder.store(builder.load(slot), place, align=8)
        return context.get_dummy_value()

    return signature, codegen


@kernel
def chunk_starts(indptr, cells, chunk_cells, begin, end, starts):
    """starts[u, c] = where the cells of chunk c, or of later ones, begin in column u of [begin, end)."""
    for u in range(begin, end):
        k = indptr[u]
        for c in range(starts.shape[1]):
            while k < indptr[u + 1] and cells[k] < c * chunk_cells:
                k += 1
            starts[u, c] = k


@kernel
def fill_panel(columns, indptr, cells, e, panel):
    """panel[cell, lane] = e of column ``columns[lane]``; ``panel`` (n_cells, LANES) uint32 comes zeroed."""
    for lane in range(columns.size):
        for k in range(indptr[columns[lane]], indptr[columns[lane] + 1]):
            panel[cells[k], lane] = e[k]


@kernel
def panel_products(columns, starts, cells, e, panel, sums):
    """Add e_u·e_v of all cells to ``sums[a, lane]`` (uint64) for u = ``columns[a]`` and the panel's genes v."""
    for c in range(starts.shape[1] - 1):
        for a in range(columns.size):
            coming = starts[columns[min(a + 4, columns.size - 1)], c]
            for at in (coming, coming + LINE // 4):
                prefetch(cells, at)
                prefetch(e, at)
            for lane in range(0, LANES, LINE // 8):
                prefetch(sums, (a + 2) * LANES + lane)
            begin, end = starts[columns[a], c], starts[columns[a], c + 1]
            if begin < end:
                for first_lane in range(0, LANES, AT_ONCE):
                    add_rows(cells, e, begin, end, panel, first_lane, sums, a)
