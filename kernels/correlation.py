"""Correlation of all pairs of genes, part by part, and the strongest partners of each (appendix A.4, lines 14 to 21).

With e and m of kernels/ranks.py, and in 64-bit integers throughout,

    sum d_u·d_v = sum e_u·e_v - n_cells · m_u · m_v          rho = sum d_u·d_v / sqrt(sum d_u² · sum d_v²)

The first sum runs over the cells that hold both genes. Genes are ordered by presence. Pairs of rare genes go through
tiles: both sides are kept cell by cell, and all products of a cell are scattered into a square of sums:

    cell 7 of block I:  a c          sums   p  q  r  s
    cell 7 of block J:  p s     →     a    +ap       +as
                                      c    +cp       +cs

Pairs with a common gene go through panels (kernels/panel.py), those of two common genes through BLAS, on columns that
are written out in float64 for so many cells that every sum is an exact integer.

Sums are turned into rho where they lie; only pairs that may still enter the list of one of their genes leave.

Work split: a task is one tile (I, J), I <= J, sparse or dense, or one panel against all genes up to its own; lists are
merged by one thread. Assumed: no column of constant rank among those given; n_cells as in kernels/ranks.py.
"""

import numpy as np
from numba import types
from numba.extending import overload

from .jit import inline, kernel, stage


@kernel
def rows_of_block(columns, indptr, cells, e, n_cells):
    """Turn columns into rows: cell i holds ``(member[k], value[k])`` for k in [start[i], start[i + 1]).

    ``member`` is the place in ``columns``, ascending in each cell; ``value`` is e. Cells where e is 0 are left out.
    """
    start = np.zeros(n_cells + 1, np.int32)
    for column in columns:
        for k in range(indptr[column], indptr[column + 1]):
            start[cells[k] + 1] += e[k] != 0
    for i in range(n_cells):
        start[i + 1] += start[i]
    member = np.empty(start[n_cells], np.uint16)
    value = np.empty(start[n_cells], np.uint32)
    for a in range(columns.size):
        for k in range(indptr[columns[a]], indptr[columns[a] + 1]):
            if e[k] != 0:
                at = start[cells[k]]
                member[at] = a
                value[at] = e[k]
                start[cells[k]] = at + 1
    for i in range(n_cells, 0, -1):  # each start has moved to its cell's end
        start[i] = start[i - 1]
    start[0] = 0
    return start, member, value


@kernel
def tile_products(rows_u, rows_v, same, sums):
    """Add e_u·e_v of all cells to ``sums[member_u, member_v]`` (uint64; only member_u < member_v if ``same``)."""
    start_u, member_u, value_u = rows_u
    start_v, member_v, value_v = rows_v
    for i in range(start_u.size - 1):
        # Slices spare a look at the index's sign for every product.
        of_u, of_v = member_u[start_u[i] : start_u[i + 1]], member_v[start_v[i] : start_v[i + 1]]
        e_u, e_v = value_u[start_u[i] : start_u[i + 1]], value_v[start_v[i] : start_v[i + 1]]
        for a in range(of_u.size):
            row, x = sums[of_u[a]], np.uint64(e_u[a])
            for b in range(a + 1 if same else 0, of_v.size):
                row[of_v[b]] += x * np.uint64(e_v[b])


@kernel
def write_dense(columns, cursor, indptr, cells, e, end, dense):
    """dense[a, i] = e of column ``columns[a]`` in cell ``end - dense.shape[1] + i``; ``cursor`` (columns,) moves on."""
    begin = end - dense.shape[1]
    for a in range(columns.size):
        row, k, stop = dense[a], cursor[a], indptr[columns[a] + 1]
        row[:] = 0
        while k < stop and cells[k] < end:
            row[cells[k] - begin] = e[k]
            k += 1
        cursor[a] = k


@kernel
def add_exact(products, sums):
    """Add float64 sums that are integers to ``sums`` (uint64)."""
    for a in range(products.shape[0]):
        for b in range(products.shape[1]):
            sums[a, b] += np.uint64(np.int64(products[a, b]))


def centred(total, offset):
    """Sum of d_u·d_v: from that of e_u·e_v (uint64); a float64 is it already."""


@overload(centred, inline="always")
def _centred(total, offset):
    if isinstance(total, types.Float):
        return lambda total, offset: total
    return lambda total, offset: np.float64(np.int64(total) - offset)


@kernel
def select_pairs(sums, columns_u, columns_v, ahead, n_cells, n_positive, sum_squares, reach):
    """Return (u, v, rho) of the pairs whose abs(rho) is at least ``reach`` of u or of v.

    ``sums`` are of e_u·e_v (uint64), or of d_u·d_v (float64, rounded once from more bits). ``ahead`` is how far the
    first of ``columns_v`` lies after the first of ``columns_u`` in the order of genes: of the pairs (a, b) those with
    a < b + ahead count, so that each pair is seen once.
    """
    found_u, found_v = np.empty(sums.size, np.int32), np.empty(sums.size, np.int32)
    found_rho = np.empty(sums.size, np.float64)
    # A look without root and division first: 1e-12 is far above its rounding error.
    slack = 1 - 1e-12
    reach_v, scale_v = np.empty(columns_v.size), np.empty(columns_v.size)
    for b in range(columns_v.size):
        reach_v[b] = reach[columns_v[b]] * slack
        scale_v[b] = 1 / np.sqrt(np.float64(sum_squares[columns_v[b]]))
    n = 0
    for a in range(columns_u.size):
        u = columns_u[a]
        reach_u = reach[u] * slack
        scale_u = 1 / np.sqrt(np.float64(sum_squares[u]))
        for b in range(max(0, a + 1 - ahead), columns_v.size):
            v = columns_v[b]
            product = centred(sums[a, b], n_cells * n_positive[u] * n_positive[v])
            if abs(product) * scale_u * scale_v[b] < min(reach_u, reach_v[b]):
                continue
            rho = product / np.sqrt(np.float64(sum_squares[u]) * np.float64(sum_squares[v]))
            if abs(rho) >= min(reach[u], reach[v]):
                found_u[n], found_v[n], found_rho[n] = u, v, rho
                n += 1
    return found_u[:n].copy(), found_v[:n].copy(), found_rho[:n].copy()


@inline
def weaker(rho_a, gene_a, rho_b, gene_b):
    """Whether partner a comes after partner b: smaller abs(rho), then higher gene."""
    return abs(rho_a) < abs(rho_b) or (abs(rho_a) == abs(rho_b) and gene_a > gene_b)


@stage
def offer(u, v, rho, n_kept, kept_gene, kept_rho, reach):
    """Let v into u's list, a heap with the weakest partner at its root, if there is room or v is stronger."""
    genes, rhos, size = kept_gene[u], kept_rho[u], n_kept[u]
    if size < genes.size:
        at = size
        while at > 0 and weaker(rho, v, rhos[(at - 1) // 2], genes[(at - 1) // 2]):
            genes[at], rhos[at] = genes[(at - 1) // 2], rhos[(at - 1) // 2]
            at = (at - 1) // 2
        size += 1
        n_kept[u] = size
    else:
        if not weaker(rhos[0], genes[0], rho, v):
            return
        at = 0
        while 2 * at + 1 < size:
            child = 2 * at + 1
            if child + 1 < size and weaker(rhos[child + 1], genes[child + 1], rhos[child], genes[child]):
                child += 1
            if not weaker(rhos[child], genes[child], rho, v):
                break
            genes[at], rhos[at] = genes[child], rhos[child]
            at = child
    genes[at], rhos[at] = v, rho
    if size == genes.size:
        reach[u] = abs(rhos[0])


@kernel
def merge_lists(n_other, other_gene, other_rho, n_kept, kept_gene, kept_rho, reach):
    """Offer lists (gene after gene, ``n_other`` partners each) to the same genes' lists; nobody is listed twice."""
    i = 0
    for u in range(n_other.size):
        for _ in range(n_other[u]):
            v, rho = other_gene[i], other_rho[i]
            i += 1
            known = False
            for k in range(n_kept[u]):
                known |= kept_gene[u, k] == v
            if not known and abs(rho) >= reach[u]:
                offer(u, v, rho, n_kept, kept_gene, kept_rho, reach)


@kernel
def keep_strongest(found, n_kept, kept_gene, kept_rho, reach):
    """Offer pairs to both genes' lists (G, k); ``reach[u]`` rises to the weakest abs(rho) of a full list."""
    found_u, found_v, found_rho = found
    for i in range(found_u.size):
        u, v, rho = found_u[i], found_v[i], found_rho[i]
        if abs(rho) >= reach[u]:
            offer(u, v, rho, n_kept, kept_gene, kept_rho, reach)
        if abs(rho) >= reach[v]:
            offer(v, u, rho, n_kept, kept_gene, kept_rho, reach)
