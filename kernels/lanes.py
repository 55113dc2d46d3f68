"""Loops over explicit vectors of 64-bit lanes, where a compiler left alone takes gathers, scatters or one at a time.

    fill_words       lane = column:       the random words of all columns
    smallest_keys    lane = seed:         the smallest random keys among the neighbours of eight seeds side by side
    sort_by_rank     lane = key:          how many keys are smaller
    write_replaced   lane = column:       tokens and labels after replacement

A lane of ``smallest_keys`` walks through the neighbours of one seed (or through its part of a hub's):

    lane            0           1        …    7
    column          s0          s1            s7         whose neighbours: the counter of Philox
    block b         w0 w1 w2 w3 of (column, first + b), the words of its neighbours j = 4·(first + b) … + 3
    five smallest   of (word << 32) | j, ascending; a block's four keys are sorted, then merged into them

Nothing in it waits: one list after the other would wait for each of its minima, and branch by what the data are.
Philox is written once: ``Lanes`` has the operators that ``philox`` uses. LLVM makes of all this what the CPU has
(AVX-512, AVX2, NEON). Assumed: little-endian, as every CPU that Numba supports.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .layout import KEPT, LANES
from .philox import LOW, philox

IN_FLIGHT = 32  # columns whose words are computed at a time: a round of one alone is waiting most of its time
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

    def below(self, other):
        """Return in which lanes this is smaller."""
        return self.builder.icmp_unsigned("<", self.value, other.value)

    def where(self, condition, other):
        """Return this in the lanes of ``condition``, ``other`` elsewhere."""
        return Lanes(self.builder, self.builder.select(condition, self.value, other.value))

    def part(self, begin, width=LANES):
        """Return the lanes [begin, begin + width)."""
        return Lanes(
            self.builder, self.builder.shuffle_vector(self.value, self.value, _places(range(begin, begin + width)))
        )

    def beside(self, other):
        """Return the lanes of this and behind them those of ``other``."""
        both = _places(range(2 * self.value.type.count))
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, other.value, both))


def _places(numbers):
    numbers = list(numbers)
    return ir.Constant(ir.VectorType(I32, len(numbers)), numbers)


def _pointer(context, builder, array_type, array, element=None, width=1):
    """Return a pointer to an array's data, in elements or vectors of them."""
    data = context.make_array(array_type)(context, builder, array).data
    element = data.type.pointee if element is None else element
    return builder.bitcast(data, (ir.VectorType(element, width) if width > 1 else element).as_pointer())


def _load(builder, pointer, index):
    """Load element or vector number ``index`` as lanes of 64 bits; memory is aligned to elements only."""
    kind = pointer.type.pointee
    value = builder.load(cgutils.gep(builder, pointer, index), align=kind.element.width // 8)
    wide = ir.VectorType(I64, kind.count)
    return Lanes(builder, value if kind.element.width == 64 else builder.zext(value, wide))


def _times(builder, index, factor, more=0):
    """Return index · factor + more."""
    return builder.add(builder.mul(index, I64(factor)), I64(more))


@intrinsic
def fill_words(typingctx, w0, w1, w2, w3, size, low, high, key_low, key_high):
    """w0[r] … w3[r] = words of (column r, block 0) for ``size`` columns, rounded up to 32; the halves of draw, seed."""
    signature = types.void(w0, w1, w2, w3, types.int64, *[types.uint64] * 4)

    def codegen(context, builder, signature, args):
        counter_key = [Lanes.copies(builder, word, IN_FLIGHT) & LOW for word in args[5:]]
        arrays = [_pointer(context, builder, signature.args[i], args[i], width=IN_FLIGHT) for i in range(4)]
        zero = Lanes.constant(builder, [0] * IN_FLIGHT)
        numbers = Lanes.constant(builder, range(IN_FLIGHT))
        steps = builder.udiv(builder.add(args[4], I64(IN_FLIGHT - 1)), I64(IN_FLIGHT))
        with cgutils.for_range(builder, steps) as loop:
            column = Lanes.copies(builder, _times(builder, loop.index, IN_FLIGHT), IN_FLIGHT) | numbers
            for array, word in zip(arrays, philox.py_func(column & LOW, zero, *counter_key), strict=True):
                # The lower halves by a shuffle, one instruction for two vectors; a truncation takes more.
                halves = builder.bitcast(word.value, ir.VectorType(I32, 2 * IN_FLIGHT))
                lower = builder.shuffle_vector(halves, halves, _places(range(0, 2 * IN_FLIGHT, 2)))
                builder.store(lower, cgutils.gep(builder, array, loop.index), align=4)
        return context.get_dummy_value()

    return signature, codegen


def _sort(keys, pairs):
    """Sort in place by a network of comparisons."""
    for i, k in pairs:
        less = keys[i].below(keys[k])
        keys[i], keys[k] = keys[i].where(less, keys[k]), keys[k].where(less, keys[i])


def _five_smallest(best, keys):
    """Return the five smallest, ascending, of five ascending keys and four in any order."""
    _sort(keys, [(0, 1), (2, 3), (0, 2), (1, 3), (1, 2)])
    # Of an ascending list and another read backwards, the smaller of each pair: they rise, then fall (bitonic).
    five = best[:1] + [a.where(a.below(b), b) for a, b in zip(best[1:], reversed(keys), strict=True)]
    _sort(five, [(0, 4), (4, 2), (1, 3), (4, 1), (2, 3)])
    return [five[i] for i in (0, 4, 1, 2, 3)]


@intrinsic
def smallest_keys(typingctx, looked, base, blocks, lanes, low, high, key_low, key_high, out, at):
    """out[at + 8·i + lane] = the i-th smallest of five keys (word << 32) | j of a lane; NONE where there are fewer.

    looked[8·(4·b + q) + lane] is the gene table's entry of the lane's neighbour q of block b; below ``base`` it is not
    in the cell. ``blocks`` is even. lanes[0:8] are the columns, lanes[8:16] the first blocks, lanes[16:24] what a key
    must not be below. ``low`` … are the halves of draw and seed.
    """
    signature = types.void(looked, types.int64, types.int64, lanes, *[types.uint64] * 4, out, types.int64)

    def codegen(context, builder, signature, args):
        kinds = signature.args
        entry = context.get_data_type(kinds[0].dtype)
        entries = _pointer(context, builder, kinds[0], args[0], width=LANES)
        given = _pointer(context, builder, kinds[3], args[3], width=LANES)
        column, first, least = (_load(builder, given, I64(i)) for i in range(3))
        column = column.beside(column) & LOW
        counter_key = [Lanes.copies(builder, word, 2 * LANES) & LOW for word in args[4:8]]
        here = Lanes.copies(builder, builder.trunc(args[1], entry))
        none = Lanes.constant(builder, [NONE] * LANES)
        slots = [cgutils.alloca_once_value(builder, none.value) for _ in range(KEPT)]  # LLVM makes registers of them
        with cgutils.for_range(builder, builder.udiv(args[2], I64(2))) as loop:  # two blocks at once: one would wait
            block = first + Lanes.copies(builder, _times(builder, loop.index, 2))
            words = philox.py_func(column, (block.beside(block + 1) + 1) & LOW, *counter_key)
            best = [Lanes(builder, builder.load(slot)) for slot in slots]
            for half in range(2):
                keys = []
                for q, word in enumerate(words):
                    row = cgutils.gep(builder, entries, _times(builder, loop.index, 8, 4 * half + q))
                    present = builder.icmp_unsigned(">=", builder.load(row, align=entry.width // 8), here.value)
                    key = (word.part(LANES * half) << 32) | ((block << 2) + (4 * half + q))
                    wanted = builder.and_(present, builder.not_(key.below(least)))
                    keys.append(key.where(wanted, none))
                best = _five_smallest(best, keys)
            for slot, key in zip(slots, best, strict=True):
                builder.store(key.value, slot)
        result = _pointer(context, builder, kinds[8], args[8])
        for i, slot in enumerate(slots):
            place = cgutils.gep(builder, result, builder.add(args[9], I64(LANES * i)))
            builder.store(builder.load(slot), builder.bitcast(place, none.value.type.as_pointer()), align=8)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def sort_by_rank(typingctx, keys, n, out):
    """out[:n] = the n different keys, ascending: each key's place is the number of smaller ones.

    Both arrays are written to behind n, up to the next multiple of 16.
    """
    signature = types.void(keys, types.int64, out)

    def codegen(context, builder, signature, args):
        width = 2 * LANES
        kind = ir.VectorType(I64, width).as_pointer()
        source, result = (_pointer(context, builder, signature.args[i], args[i]) for i in (0, 2))
        zero, one = (Lanes.constant(builder, [i] * width) for i in (0, 1))
        behind = builder.bitcast(cgutils.gep(builder, source, args[1]), kind)
        builder.store(Lanes.constant(builder, [NONE] * width).value, behind, align=8)
        rank = cgutils.alloca_once(builder, kind.pointee)
        groups = builder.udiv(builder.add(args[1], I64(width - 1)), I64(width))
        with cgutils.for_range(builder, groups) as group:
            begin = cgutils.gep(builder, source, _times(builder, group.index, width))
            mine = Lanes(builder, builder.load(builder.bitcast(begin, kind), align=8))
            builder.store(zero.value, rank)
            with cgutils.for_range(builder, args[1]) as other:
                key = Lanes.copies(builder, builder.load(cgutils.gep(builder, source, other.index)), width)
                smaller = one.where(key.below(mine), zero)
                builder.store((Lanes(builder, builder.load(rank)) + smaller).value, rank)
            ranks = builder.load(rank)
            for lane in range(width):
                place = cgutils.gep(builder, result, builder.extract_element(ranks, I32(lane)))
                builder.store(builder.extract_element(mine.value, I32(lane)), place)
        return context.get_dummy_value()

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
        rows = [_row_from(context, builder, kinds[i], args[i], args[1]) for i in (0, 11, 12)]
        bits = _pointer(context, builder, kinds[3], args[3], I8)
        words = [_pointer(context, builder, kinds[i], args[i], width=LANES) for i in (4, 5)]
        mask_below, random_below, lo, genes, mask = (Lanes.copies(builder, arg) for arg in args[6:11])
        unmasked = Lanes.constant(builder, [2**64 - 100] * LANES)

        def write(index, live=None):
            """Write eight columns, or those of them that are ``live``."""
            source, *targets = (cgutils.gep(builder, row, index) for row in rows)
            token = _load_live(builder, source, live)
            chosen = builder.bitcast(builder.load(cgutils.gep(builder, bits, index)), ir.VectorType(I1, LANES))
            word, gene_word = (_load(builder, pointer, index) for pointer in words)
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


def _row_from(context, builder, array_type, array, first):
    """Return a pointer to vectors of a row's elements from ``first`` on."""
    data = cgutils.gep(builder, _pointer(context, builder, array_type, array), first)
    return builder.bitcast(data, ir.VectorType(data.type.pointee, LANES).as_pointer())


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
