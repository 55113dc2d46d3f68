"""Functions of FunctionMasker in a module of its own: a spawned worker imports it by its name."""

import numba
import numpy as np


def by_tens(tokens, words):
    """Genes of one ten of ids together, the tens in random order: fifteen lines are enough for a strategy."""
    tens = tokens // 10
    kinds = np.unique(tens)
    kinds = kinds[words[: kinds.size, 0].argsort(kind="stable")]
    groups = [np.flatnonzero(tens == kind) for kind in kinds]
    return np.cumsum([0, *map(len, groups)]), np.concatenate(groups)


@numba.njit
def by_tens_compiled(tokens, words):
    tens = tokens // 10
    kinds = np.unique(tens)
    kinds = kinds[np.argsort(words[: kinds.size, 0], kind="mergesort")]
    indptr, columns, n = np.zeros(kinds.size + 1, np.int64), np.empty(tokens.size, np.int64), 0
    for group in range(kinds.size):
        for place in range(tokens.size):
            if tens[place] == kinds[group]:
                columns[n] = place
                n += 1
        indptr[group + 1] = n
    return indptr, columns
