"""Loops over explicit vectors of 64-bit lanes, where a compiler left alone takes gathers, scatters or one at a time.

    fill_words         lane = column:    the random words of columns
    fill_words_placing lane = column:    the same, and genes are put into the gene table meanwhile
    weigh_words        lane = word:      words become keys by weight
    neighbor_words     lane = block:     the random words of a seed's neighbours
    first_words        lane = column:    the first random word of any number of columns
    sort_by_rank       lane = key:       how many keys are smaller
    smallest_by_rank   lane = key:       the same, for the few smallest in any order
    write_replaced     lane = column:    tokens and labels after replacement

Philox is written once: ``Lanes`` has the operators that ``philox_round`` uses. LLVM makes of all this what the CPU has
(AVX-512, AVX2, NEON). Assumed: little-endian, as every CPU that Numba supports.
"""

from itertools import islice

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .layout import AT_ONCE
from .philox import LOW, ROUNDS, philox_round
from .weights import race_key

LANES = 8  # of 64 bits
NONE = np.uint64(2**64 - 1)  # larger than any key
I1, I8, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 32, 64))


class Lanes:
    """A vector of uint64 in LLVM, with the operators of Python."""

    __array_ufunc__ = None  # NumPy's integers leave the operation to this class

    def __init__(self, builder, value):
        self.builder, self.value = builder, value

    @classmethod
    def constant(cls, builder, numbers):
        """Return lanes of known numbers."""
        return cls(builder, ir.Constant(ir.VectorType(I64, len(numbers)), [int(number) for number in numbers]))

    @classmethod
    def copies(cls, builder, integer, width=LANES):
        """Return copies of an integer of LLVM (of any size: then the lanes have that size)."""
        one = builder.insert_element(ir.Constant(ir.VectorType(integer.type, width), ir.Undefined), integer, I32(0))
        return cls(builder, builder.shuffle_vector(one, one, _places([0] * width)))

    def _apply(self, operation, other):
        if not isinstance(other, Lanes):
            other = Lanes.constant(self.builder, [other] * self.value.type.count)
        return Lanes(self.builder, getattr(self.builder, operation)(self.value, other.value))

    def __add__(self, other):
        return self._apply("add", other)

    def __sub__(self, other):
        return self._apply("sub", other)

    def __rsub__(self, other):
        return Lanes.constant(self.builder, [other] * self.value.type.count) - self

    def __mul__(self, other):
        return self._apply("mul", other)

    def __and__(self, other):
        return self._apply("and_", other)

    def __or__(self, other):
        return self._apply("or_", other)

    def __xor__(self, other):
        return self._apply("xor", other)

    def __rshift__(self, other):
        return self._apply("lshr", other)

    def __lshift__(self, other):
        return self._apply("shl", other)

    __radd__, __rmul__ = __add__, __mul__

    def leading_zeros(self):
        """Return how many bits of each lane, which is not 0, are zeros before its highest one."""
        kind = self.value.type
        function = ir.FunctionType(kind, [kind, I1])
        count = cgutils.get_or_insert_function(self.builder.module, function, f"llvm.ctlz.v{kind.count}i64")
        return Lanes(self.builder, self.builder.call(count, [self.value, I1(1)]))

    def below(self, other):
        """Return in which lanes this is smaller."""
        return self.builder.icmp_unsigned("<", self.value, other.value)

    def where(self, condition, other):
        """Return this in the lanes of ``condition``, ``other`` elsewhere."""
        return Lanes(self.builder, self.builder.select(condition, self.value, other.value))


def _places(numbers):
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(I32, len(numbers)), numbers)


def _pointer(context, builder, array_type, array):
    """Return a pointer to an array's elements."""
    return context.make_array(array_type)(context, builder, array).data


def _vector_from(context, builder, array_type, array, begin, width):
    """Return a pointer to a vector of an array's elements from ``begin`` on."""
    element = cgutils.gep(builder, _pointer(context, builder, array_type, array), begin)
    return builder.bitcast(element, ir.VectorType(element.type.pointee, width).as_pointer())


def _times(builder, index, factor):
    return builder.mul(index, I64(factor))


def _philox(*state, after_round=None):
    """Return the four words of ``philox`` in lanes; ``after_round`` is called with each round's number."""
    for number in range(ROUNDS):
        state = philox_round.py_func(*state)
        if after_round is not None:
            after_round(number)
    return state[:4]


def _fill_words(context, builder, kinds, args, after_round=None):
    """Emit what ``fill_words`` does; ``args`` are its own."""
    block, *counter_key = (Lanes.copies(builder, word, AT_ONCE) & LOW for word in args[5:10])
    column = Lanes.copies(builder, args[4], AT_ONCE) + Lanes.constant(builder, range(AT_ONCE))
    words = _philox(column & LOW, block, *counter_key, after_round=after_round)
    for kind, array, word in zip(kinds, args, words, strict=False):
        # The lower halves by a shuffle, one instruction for two vectors; a truncation takes more.
        halves = builder.bitcast(word.value, ir.VectorType(I32, 2 * AT_ONCE))
        lower = builder.shuffle_vector(halves, halves, _places(range(0, 2 * AT_ONCE, 2)))
        builder.store(lower, _vector_from(context, builder, kind, array, args[4], AT_ONCE), align=4)
    return context.get_dummy_value()


@intrinsic
def fill_words(typingctx, w0, w1, w2, w3, begin, block, low, high, key_low, key_high):
    """w0[r] … w3[r] = words of (column r, block), AT_ONCE columns from ``begin`` on; the halves of draw and seed."""
    signature = types.void(w0, w1, w2, w3, types.int64, *[types.uint64] * 5)

    def codegen(context, builder, signature, args):
        return _fill_words(context, builder, signature.args, args)

    return signature, codegen


@intrinsic
def fill_words_placing(
    typingctx, w0, w1, w2, w3, begin, block, low, high, key_low, key_high, tokens, first, ids, base, pos
):
    """``fill_words``, and pos[ids[tokens[first + r]]] = base + r for these columns, from the last one to the first.

    Columns are placed between the rounds. Before or after them the processor would do either alone: the vectors of 32
    columns fill its queue.
    """
    signature = types.void(w0, w1, w2, w3, types.int64, *[types.uint64] * 5, tokens, types.int64, ids, types.int64, pos)

    def codegen(context, builder, signature, args):
        tokens, numbers, table = (_pointer(context, builder, signature.args[i], args[i]) for i in (10, 12, 14))
        here = cgutils.gep(builder, tokens, builder.add(args[11], args[4]))
        entry = builder.add(args[13], args[4])
        unchanged = builder.module.add_metadata([])  # by what is written here: loads need not wait for stores
        columns = iter(range(AT_ONCE - 1, -1, -1))

        def load(pointer):
            value = builder.load(pointer)
            value.set_metadata("invariant.load", unchanged)
            return value

        def place(number):
            """Place a share of the columns, so that none is left after the last round."""
            for column in islice(columns, AT_ONCE * (number + 1) // ROUNDS - AT_ONCE * number // ROUNDS):
                token = load(cgutils.gep(builder, here, I64(column)))
                gene = builder.zext(load(cgutils.gep(builder, numbers, token)), I64)
                value = builder.trunc(builder.add(entry, I64(column)), table.type.pointee)
                builder.store(value, cgutils.gep(builder, table, gene))

        return _fill_words(context, builder, signature.args, args, place)

    return signature, codegen


@intrinsic
def first_words(typingctx, size, block, low, high, key_low, key_high, words):
    """words[c] = w0 of (column c, block), for ``size`` columns, rounded up to 32; the halves of draw and seed."""
    signature = types.void(types.int64, *[types.uint64] * 5, words)

    def codegen(context, builder, signature, args):
        block, *counter_key = (Lanes.copies(builder, word, AT_ONCE) & LOW for word in args[1:6])
        places = Lanes.constant(builder, range(AT_ONCE))
        steps = builder.udiv(builder.add(args[0], I64(AT_ONCE - 1)), I64(AT_ONCE))
        with cgutils.for_range(builder, steps) as loop:
            begin = _times(builder, loop.index, AT_ONCE)
            column = Lanes.copies(builder, begin, AT_ONCE) + places
            first = _philox(column & LOW, block, *counter_key)[0].value
            result = _vector_from(context, builder, signature.args[6], args[6], begin, AT_ONCE)
            builder.store(builder.trunc(first, result.type.pointee), result, align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def weigh_words(typingctx, words, begin, costs, place):
    """words[begin + k] = its key with the cost costs[place + k], for AT_ONCE k: see ``weights.py``."""
    signature = types.void(words, types.int64, costs, types.int64)

    def codegen(context, builder, signature, args):
        pointers = [_vector_from(context, builder, signature.args[i], args[i], args[i + 1], AT_ONCE) for i in (0, 2)]
        wide = ir.VectorType(I64, AT_ONCE)
        word, cost = (Lanes(builder, builder.zext(builder.load(each, align=4), wide)) for each in pointers)
        narrow = builder.trunc(race_key(word, cost).value, ir.VectorType(I32, AT_ONCE))
        builder.store(narrow, pointers[0], align=4)
        return context.get_dummy_value()

    return signature, codegen


def _side_by_side(builder, low, high):
    """Return the lower halves of two vectors of lanes, in one: the first in the lower half of each lane."""
    halves = ir.VectorType(I32, 2 * LANES)
    both = builder.shuffle_vector(
        builder.bitcast(low.value, halves),
        builder.bitcast(high.value, halves),
        _places(place for lane in range(LANES) for place in (2 * lane, 2 * (LANES + lane))),
    )
    return builder.bitcast(both, low.value.type)


@intrinsic
def neighbor_words(typingctx, column, size, low, high, key_low, key_high, words):
    """words[j] = the word of a seed's neighbour j, for ``size`` neighbours, rounded up to 32; the halves of draw, seed.

    Neighbour j has word j mod 4 of (column, block 1 + j div 4).
    """
    signature = types.void(types.uint64, types.int64, *[types.uint64] * 4, words)

    def codegen(context, builder, signature, args):
        column, *counter_key = (Lanes.copies(builder, word) & LOW for word in (args[0], *args[2:6]))
        # In this order of blocks, pairing even lanes with even ones and odd with odd puts all words in order.
        blocks = Lanes.constant(builder, [1, 5, 2, 6, 3, 7, 4, 8])
        steps = builder.udiv(builder.add(args[1], I64(4 * LANES - 1)), I64(4 * LANES))
        with cgutils.for_range(builder, steps) as loop:
            block = blocks + Lanes.copies(builder, _times(builder, loop.index, LANES))
            w0, w1, w2, w3 = _philox(column, block & LOW, *counter_key)
            front, back = _side_by_side(builder, w0, w1), _side_by_side(builder, w2, w3)
            even, odd = (
                builder.shuffle_vector(front, back, _places(LANES * (i % 2) + k + i - i % 2 for i in range(LANES)))
                for k in range(2)
            )
            both = builder.shuffle_vector(even, odd, _places(range(2 * LANES)))
            begin = _times(builder, loop.index, 4 * LANES)
            result = _vector_from(context, builder, signature.args[6], args[6], begin, 4 * LANES)
            builder.store(builder.bitcast(both, result.type.pointee), result, align=4)
        return context.get_dummy_value()

    return signature, codegen


def _rank(builder, keys, n, group):
    """Return vector number ``group`` of n keys, and how many of all keys are smaller than each of these."""
    width = 2 * LANES
    zero, one = (Lanes.constant(builder, [i] * width) for i in (0, 1))
    begin = cgutils.gep(builder, keys, _times(builder, group, width))
    mine = Lanes(builder, builder.load(builder.bitcast(begin, zero.value.type.as_pointer()), align=8))
    rank = cgutils.alloca_once(builder, zero.value.type)
    builder.store(zero.value, rank)
    with cgutils.for_range(builder, n) as other:
        key = Lanes.copies(builder, builder.load(cgutils.gep(builder, keys, other.index)), width)
        before = Lanes(builder, builder.load(rank))
        builder.store((before + one).where(key.below(mine), before).value, rank)
    return mine, Lanes(builder, builder.load(rank))


def _groups(builder, n):
    """Return in how many vectors of two times eight n keys lie."""
    return builder.udiv(builder.add(n, I64(2 * LANES - 1)), I64(2 * LANES))


@intrinsic
def sort_by_rank(typingctx, keys, n, out):
    """out[:n] = the n different keys, ascending: each key's place is the number of smaller ones.

    Both arrays are written to after n, up to the next multiple of 16.
    """
    signature = types.void(keys, types.int64, out)

    def codegen(context, builder, signature, args):
        source, result = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 2))
        none = Lanes.constant(builder, [NONE] * (2 * LANES)).value
        after = builder.bitcast(cgutils.gep(builder, source, args[1]), none.type.as_pointer())
        builder.store(none, after, align=8)
        with cgutils.for_range(builder, _groups(builder, args[1])) as group:
            mine, rank = _rank(builder, source, args[1], group.index)
            for lane in range(2 * LANES):
                place = cgutils.gep(builder, result, builder.extract_element(rank.value, I32(lane)))
                builder.store(builder.extract_element(mine.value, I32(lane)), place)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def smallest_by_rank(typingctx, keys, n, most):
    """Bit i < n: fewer than ``most`` of the n different keys, at most 64, are smaller than keys[i]; others undefined.

    The array is read after n, up to the next multiple of 16.
    """
    signature = types.uint64(keys, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        source = _pointer(context, builder, signature.args[0], args[0])
        most = Lanes.copies(builder, args[2], 2 * LANES)
        bits = cgutils.alloca_once_value(builder, I64(0))
        with cgutils.for_range(builder, _groups(builder, args[1])) as group:
            _, rank = _rank(builder, source, args[1], group.index)
            chosen = builder.zext(builder.bitcast(rank.below(most), ir.IntType(2 * LANES)), I64)
            shifted = builder.shl(chosen, _times(builder, group.index, 2 * LANES))
            builder.store(builder.or_(builder.load(bits), shifted), bits)
        return builder.load(bits)

    return signature, codegen


@intrinsic
def write_replaced(
    typingctx, tokens, first, size, masked, w2, w3, mask_below, random_below, lo, genes, mask, out, labels
):
    """Write ``size`` tokens from ``first`` on to ``out``, where masked with their replacement, and their labels.

    w2 < mask_below → <mask>; else w2 < random_below → the gene lo + (w3 · genes >> 32); else unchanged.
    ``masked`` are bits, and like w2 and w3 begin at ``first``.
    """
    signature = types.void(tokens, types.int64, types.int64, masked, w2, w3, *[types.uint64] * 5, out, labels)

    def codegen(context, builder, signature, args):
        kinds = signature.args
        rows = [_vector_from(context, builder, kinds[i], args[i], args[1], LANES) for i in (0, 11, 12)]
        bits = builder.bitcast(_pointer(context, builder, kinds[3], args[3]), I8.as_pointer())
        words = [_vector_from(context, builder, kinds[i], args[i], I64(0), LANES) for i in (4, 5)]
        mask_below, random_below, lo, genes, mask = (Lanes.copies(builder, arg) for arg in args[6:11])
        wide = ir.VectorType(I64, LANES)
        unmasked = Lanes.constant(builder, [2**64 - 100] * LANES)

        def write(index, live=None):
            """Write eight columns, or those of them that are ``live``."""
            source, *targets = (cgutils.gep(builder, row, index) for row in rows)
            token = _load_live(builder, source, live)
            chosen = builder.bitcast(builder.load(cgutils.gep(builder, bits, index)), ir.VectorType(I1, LANES))
            word, gene_word = (
                Lanes(builder, builder.zext(builder.load(cgutils.gep(builder, pointer, index), align=4), wide))
                for pointer in words
            )
            gene = lo + (((genes & LOW) * gene_word) >> 32)
            new = mask.where(word.below(mask_below), gene.where(word.below(random_below), token))
            for target, value in zip(targets, (new.where(chosen, token), token.where(chosen, unmasked)), strict=True):
                _store_live(builder, target, value, live)

        whole, rest = builder.udiv(args[2], I64(LANES)), builder.urem(args[2], I64(LANES))
        with cgutils.for_range(builder, whole) as loop:
            write(loop.index)
        with builder.if_then(builder.icmp_unsigned(">", rest, I64(0))):
            write(whole, Lanes.constant(builder, range(LANES)).below(Lanes.copies(builder, rest)))
        return context.get_dummy_value()

    return signature, codegen


def _load_live(builder, pointer, live):
    """Load integers with their sign as lanes, and nothing outside of ``live``."""
    kind, wide = pointer.type.pointee, ir.VectorType(I64, LANES)
    size = kind.element.width
    if live is None:
        value = builder.load(pointer, align=size // 8)
    else:
        function = ir.FunctionType(kind, [pointer.type, I32, live.type, kind])
        load = cgutils.get_or_insert_function(builder.module, function, f"llvm.masked.load.v{LANES}i{size}.p0")
        value = builder.call(load, [pointer, I32(size // 8), live, ir.Constant(kind, ir.Undefined)])
    return Lanes(builder, value if size == 64 else builder.sext(value, wide))


def _store_live(builder, pointer, lanes, live):
    """Store lanes, and nothing outside of ``live``."""
    if live is None:
        builder.store(lanes.value, pointer, align=8)
        return
    function = ir.FunctionType(ir.VoidType(), [lanes.value.type, pointer.type, I32, live.type])
    store = cgutils.get_or_insert_function(builder.module, function, f"llvm.masked.store.v{LANES}i64.p0")
    builder.call(store, [lanes.value, pointer, I32(8), live])
