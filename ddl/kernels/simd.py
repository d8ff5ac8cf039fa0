# mypy: disable-error-code="untyped-decorator,no-untyped-def,misc,no-untyped-call"
"""Explicit SIMD vectors for Numba loops: one cache line of numbers is added or multiplied at a time.

LLVM vectorises simple loops by itself, but a loop that keeps a dozen running sums in registers needs explicit vectors.
On a processor with shorter registers LLVM splits each vector into several. Only ``*_numba`` files use this."""

from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from ddl.kernels.backend import LINE


class Vector(types.Type):
    """A vector of as many ``element`` as a cache line holds."""

    def __init__(self, element):
        self.element, self.count = element, LINE * 8 // element.bitwidth
        super().__init__(name=f"Vector({element})")


def _vector(element):
    return ir.VectorType(ir.FloatType() if element == types.float32 else ir.DoubleType(), LINE * 8 // element.bitwidth)


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, _vector(lanes.element))


def pointer(context, builder, array_type, array, at, vector=None):
    """Of x[at], to one vector (or what ``vector`` is), inside the build of an intrinsic."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), (vector or _vector(array_type.dtype)).as_pointer())


@intrinsic
def load(typingctx, x, at):
    """The elements from ``at`` of ``x``: (length,), contiguous."""

    def build(context, builder, signature, arguments):
        found = builder.load(pointer(context, builder, signature.args[0], *arguments))
        found.align = x.dtype.bitwidth // 8
        return found

    return Vector(x.dtype)(x, types.intp), build


@intrinsic
def store(typingctx, x, at, value):
    """x[at:] = value for one vector."""

    def build(context, builder, signature, arguments):
        written = builder.store(arguments[2], pointer(context, builder, signature.args[0], *arguments[:2]))
        written.align = x.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(x, types.intp, value), build


@intrinsic
def spread(typingctx, x, at):
    """x[at] in every place."""

    def build(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        vector = _vector(x.dtype)
        single = builder.insert_element(
            ir.Constant(vector, ir.Undefined), builder.load(builder.gep(data, [arguments[1]])), cgutils.int32_t(0)
        )
        places = ir.Constant(ir.VectorType(cgutils.int32_t, vector.count), None)
        return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), places)

    return Vector(x.dtype)(x, types.intp), build


@intrinsic
def nothing(typingctx, x):
    """Zeros, of the elements of the array ``x``."""

    def build(context, builder, signature, arguments):
        return ir.Constant(_vector(x.dtype), None)

    return Vector(x.dtype)(x), build


@intrinsic
def lowest(typingctx, x):
    """Minus infinity in every place, of the elements of the array ``x``."""

    def build(context, builder, signature, arguments):
        vector = _vector(x.dtype)
        return ir.Constant(vector, [ir.Constant(vector.element, float("-inf"))] * vector.count)

    return Vector(x.dtype)(x), build


@intrinsic
def multiply_add(typingctx, a, b, total):
    """total + a * b, rounded once where the processor can."""

    def build(context, builder, signature, arguments):
        product = builder.fmul(*arguments[:2], flags=("contract",))
        return builder.fadd(product, arguments[2], flags=("contract",))

    return total(a, b, total), build


@intrinsic
def above_zero(typingctx, value, gate):
    """``value`` where ``gate`` is not at or below zero, else 0: NaN passes the gate."""

    def build(context, builder, signature, arguments):
        none = ir.Constant(_vector(value.element), None)
        return builder.select(builder.fcmp_ordered("<=", arguments[1], none), none, arguments[0])

    return value(value, gate), build


@intrinsic
def larger(typingctx, a, b):
    """b where it is larger than a, else a: NaN in b is passed over."""

    def build(context, builder, signature, arguments):
        return _larger(builder, *arguments)

    return a(a, b), build


@intrinsic
def where_beaten(typingctx, best, value, then, other):
    """``then`` where ``value`` is larger than ``best`` or the first NaN of the two, else ``other``."""

    def build(context, builder, signature, arguments):
        best, value, then, other = arguments
        beaten = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
        return builder.select(beaten, then, other)

    return then(best, value, then, then), build


@intrinsic
def where_equal(typingctx, a, b, value):
    """``value`` where a equals b, else 0."""

    def build(context, builder, signature, arguments):
        same = builder.fcmp_ordered("==", *arguments[:2])
        return builder.select(same, arguments[2], ir.Constant(_vector(value.element), None))

    return value(a, a, value), build


@intrinsic
def load_whole(typingctx, whole, at, x):
    """As many whole numbers as a vector of ``x`` has elements, turned into those."""

    def build(context, builder, signature, arguments):
        vector = _vector(x.dtype)
        numbers = ir.VectorType(ir.IntType(whole.dtype.bitwidth), vector.count)
        source, at = arguments[:2]
        found = builder.load(pointer(context, builder, signature.args[0], source, at, numbers))
        found.align = whole.dtype.bitwidth // 8
        return builder.sitofp(found, vector)

    return Vector(x.dtype)(whole, types.intp, x), build


@intrinsic
def store_whole(typingctx, whole, at, value):
    """whole[at:] = value, which holds whole numbers."""

    def build(context, builder, signature, arguments):
        numbers = ir.VectorType(ir.IntType(whole.dtype.bitwidth), value.count)
        to, at, values = arguments
        place = pointer(context, builder, signature.args[0], to, at, numbers)
        builder.store(builder.fptosi(values, numbers), place).align = whole.dtype.bitwidth // 8
        return context.get_dummy_value()

    return types.void(whole, types.intp, value), build


def _larger(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", b, a), b, a)


@intrinsic
def largest(typingctx, vector):
    """The largest of a vector without NaN."""

    def build(context, builder, signature, arguments):
        found, half = arguments[0], vector.count // 2
        while half:
            places = ir.Constant(
                ir.VectorType(cgutils.int32_t, vector.count), [(i + half) % vector.count for i in range(vector.count)]
            )
            found = _larger(builder, found, builder.shuffle_vector(found, found, places))
            half //= 2
        return builder.extract_element(found, cgutils.int32_t(0))

    return vector.element(vector), build


def _arithmetic(name):
    @intrinsic
    def apply(typingctx, a, b):
        def build(context, builder, signature, arguments):
            return getattr(builder, name)(*arguments)

        return a(a, b), build

    return apply


def _spell(symbol, name):
    apply = _arithmetic(name)

    @overload(symbol, inline="always")
    def spelled(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: apply(a, b)
        return None


_spell(operator.add, "fadd")
_spell(operator.iadd, "fadd")
_spell(operator.sub, "fsub")
