"""Rewiring a graph by double-edge swaps: every gene keeps its degree, who is linked to whom becomes random.

    edges (a, b), (c, d)  →  (a, d), (c, b)  or  (a, c), (b, d)      unless that is a loop or an edge already there

Edges stand in a hash table of keys u · size + v (u < v): open addressing, linear probing, EMPTY where free; removal
moves what follows back, so that no search ends too early. Maslov and Sneppen (2002).

Assumed: the table's size is a power of two, at least twice the number of edges; proposals are random.
"""

import numpy as np

from .jit import kernel, stage

EMPTY = np.int64(-1)


@stage
def slot_of(key, mask):
    """Return where a key is looked for first (Fibonacci hashing, upper bits folded in)."""
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@stage
def contains(table, key):
    """Tell whether a key is there."""
    mask = table.size - 1
    k = slot_of(key, mask)
    while table[k] != EMPTY:
        if table[k] == key:
            return True
        k = (k + 1) & mask
    return False


@stage
def insert(table, key):
    """Add a key that is not there."""
    mask = table.size - 1
    k = slot_of(key, mask)
    while table[k] != EMPTY:
        k = (k + 1) & mask
    table[k] = key


@stage
def remove(table, key):
    """Remove a key that is there."""
    mask = table.size - 1
    k = slot_of(key, mask)
    while table[k] != key:
        k = (k + 1) & mask
    hole = k
    k = (k + 1) & mask
    while table[k] != EMPTY:
        # What is looked for from beyond the hole on stays where it is.
        if ((k - slot_of(table[k], mask)) & mask) >= ((k - hole) & mask):
            table[hole] = table[k]
            hole = k
        k = (k + 1) & mask
    table[hole] = EMPTY


@kernel
def insert_edges(u, v, size, table):
    """Add every edge."""
    for k in range(u.size):
        insert(table, min(u[k], v[k]) * size + max(u[k], v[k]))


@kernel
def swap_edges(u, v, size, table, first, second, turned, wanted):
    """Try swaps of edges ``first[k]`` and ``second[k]`` in order; return how many were made, at most ``wanted``.

    ``u``, ``v`` (E,) int64 are changed in place, with ``table``; ``turned[k]``: the second edge is taken as (d, c).
    """
    made = 0
    for k in range(first.size):
        if made == wanted:
            break
        i, j = first[k], second[k]
        a, b = u[i], v[i]
        c, d = (v[j], u[j]) if turned[k] else (u[j], v[j])
        if a == d or c == b or a == c or b == d:  # a loop, or the same two edges again
            continue
        one, other = min(a, d) * size + max(a, d), min(c, b) * size + max(c, b)
        if contains(table, one) or contains(table, other):
            continue
        remove(table, min(a, b) * size + max(a, b))
        remove(table, min(c, d) * size + max(c, d))
        insert(table, one)
        insert(table, other)
        v[i] = d
        u[j], v[j] = c, b
        made += 1
    return made
