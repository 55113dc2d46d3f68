"""Sets of columns as bits, 64 to a word, and the vector comparisons that make them.

    word i, bit b  ↔  column 64·i + b

LLVM turns each comparison of 64 values into a few vector instructions on any CPU (AVX-512, AVX2, NEON).
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I1, I64 = ir.IntType(1), ir.IntType(64)


@intrinsic
def count_ones(typingctx, word):
    """Number of ones in a uint64."""
    return types.int64(types.uint64), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def lowest_one(typingctx, word):
    """Index of the lowest one of a uint64; 64 if it is 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(I1, 0))

    return types.int64(types.uint64), codegen


def _load64(context, builder, array_type, array, index):
    """Emit a load of 64 elements of a one-dimensional array, as one vector."""
    data = context.make_array(array_type)(context, builder, array).data
    element = context.get_data_type(array_type.dtype)
    pointer = builder.bitcast(cgutils.gep(builder, data, index), ir.VectorType(element, 64).as_pointer())
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


def _spread(context, builder, array_type, value):
    """Emit a vector of 64 copies of an integer, in the array's element type."""
    element = context.get_data_type(array_type.dtype)
    narrow = value if element.width == 64 else builder.trunc(value, element)
    vector = builder.insert_element(
        ir.Constant(ir.VectorType(element, 64), ir.Undefined), narrow, ir.Constant(ir.IntType(32), 0)
    )
    return builder.shuffle_vector(vector, vector, ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64))


@intrinsic
def ones_below(typingctx, array, index, bound):
    """Bit b: array[index + b] < bound, unsigned; ``bound`` must fit the array's dtype."""
    signature = types.uint64(array, types.int64, types.uint64)

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        values = _load64(context, builder, kind, args[0], args[1])
        return builder.bitcast(builder.icmp_unsigned("<", values, _spread(context, builder, kind, args[2])), I64)

    return signature, codegen


@intrinsic
def ones_inside(typingctx, array, index, low, width):
    """Bit b: low <= array[index + b] < low + width; ``low`` and ``width`` must fit the array's dtype."""
    signature = types.uint64(array, types.int64, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        values = _load64(context, builder, kind, args[0], args[1])
        shifted = builder.sub(values, _spread(context, builder, kind, args[2]))
        return builder.bitcast(builder.icmp_unsigned("<", shifted, _spread(context, builder, kind, args[3])), I64)

    return signature, codegen


@intrinsic
def ones_unequal(typingctx, array, index, value):
    """Bit b: array[index + b] != value; ``value`` must fit the array's dtype."""
    signature = types.uint64(array, types.int64, types.int64)

    def codegen(context, builder, signature, args):
        kind = signature.args[0]
        values = _load64(context, builder, kind, args[0], args[1])
        return builder.bitcast(builder.icmp_unsigned("!=", values, _spread(context, builder, kind, args[2])), I64)

    return signature, codegen


@intrinsic
def slots_with(typingctx, words, index, value):
    """Bit s: number s of the 16 numbers of 16 bits in words[index:index + 4] is the low 16 bits of ``value``."""
    signature = types.uint16(words, types.uint64, types.uint64)

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        i16, width = ir.IntType(16), 16
        pointer = builder.bitcast(cgutils.gep(builder, data, args[1]), ir.VectorType(i16, width).as_pointer())
        one = builder.insert_element(
            ir.Constant(ir.VectorType(i16, width), ir.Undefined), builder.trunc(args[2], i16), ir.IntType(32)(0)
        )
        copies = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width))
        return builder.bitcast(builder.icmp_unsigned("==", builder.load(pointer, align=8), copies), i16)

    return signature, codegen


@intrinsic
def prefetch(typingctx, array, index):
    """Ask for the cache line of array[index]; the index may lie anywhere, nothing is read."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        pointer = builder.bitcast(cgutils.gep(builder, data, args[1]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, ir.Constant(i32, 0), ir.Constant(i32, 3), ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen
