"""Best-fit packing of cells into batches of at most so many tokens.

    free[room]    the batch that was the last to have ``room`` tokens left (−1: none has)
    below[batch]  the one before it with the same room left
    rooms         bit ``room``: some batch has so many tokens left
    words         bit i: rooms[i] is not 0

Each cell goes to a batch with the smallest room that suffices, or else to a new one. Of batches with the same room
that one is taken which came to it last. The bits find it in a few steps, however many batches there are.
Assumed: free is −1, rooms and words are 0; lengths are in [0, free.size − 1].
"""

import numpy as np

from .bits import lowest_one
from .jit import inline, kernel

U0, U1 = np.uint64(0), np.uint64(1)


@inline
def ones_from(word, i):
    """The ones of a word at bit i mod 64 and after it."""
    return word & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(i & 63))


@inline
def smallest_room(rooms, words, length):
    """The smallest room of a batch that is at least ``length``; −1 if there is none."""
    found = ones_from(rooms[length >> 6], length)
    if found != U0:
        return (length & ~63) + lowest_one(found)
    after = (length >> 6) + 1
    for i in range(after >> 6, words.size):
        found = ones_from(words[i], after) if i == after >> 6 else words[i]
        if found != U0:
            word = 64 * i + lowest_one(found)
            return 64 * word + lowest_one(rooms[word])
    return -1


@kernel(makes_arrays=False)
def best_fit(lengths, free, below, rooms, words, batch_of):
    """Fill ``batch_of`` with each cell's batch, numbered from 0 as they are opened; return the number of batches."""
    n_batches = 0
    for cell in range(lengths.size):
        room = smallest_room(rooms, words, lengths[cell])
        if room < 0:
            batch, room = n_batches, free.size - 1
            n_batches += 1
        else:
            batch = free[room]
            free[room] = below[batch]
            if free[room] < 0:
                rooms[room >> 6] &= ~(U1 << np.uint64(room & 63))
                if rooms[room >> 6] == U0:
                    words[room >> 12] &= ~(U1 << np.uint64((room >> 6) & 63))
        batch_of[cell] = batch
        room -= lengths[cell]
        below[batch] = free[room]
        free[room] = batch
        rooms[room >> 6] |= U1 << np.uint64(room & 63)
        words[room >> 12] |= U1 << np.uint64((room >> 6) & 63)
    return n_batches
