"""Vectors of a processor's registers for Numba: what its own vectoriser does not find is said here, in LLVM's words.

    total = fma(load_floats(weights, 8 * i), broadcast(x[i]), total)

Loads and stores take an array and the index of the first element; with `NUMBA_BOUNDSCHECK=1` they check both ends.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, overload, register_model
from numba.np.arrayobj import populate_array

LANES = 8
"""Floats of a vector: AVX2's. Wider ones gain nothing where memory is the limit."""


@cache
def features() -> Mapping[str, bool]:
    """What the processor can do, by LLVM's names; `NUMBA_CPU_FEATURES` replaces what was found, for tests."""
    named = config.CPU_FEATURES
    if named is None:
        return dict(llvm.get_host_cpu_features())
    return {feature[1:]: feature[0] == "+" for feature in named.split(",") if feature}


@cache
def has_byte_products() -> bool:
    """Whether products of bytes are added up in one instruction (AVX-VNNI, or AVX-512 VNNI on short vectors)."""
    found = features()
    return found.get("avxvnni", False) or (found.get("avx512vnni", False) and found.get("avx512vl", False))


class Vector(types.Type):
    """So many numbers in a register."""

    def __init__(self, element: ir.Type, lanes: int) -> None:
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=f"Vector({self.llvm})")


@register_model(Vector)
class VectorModel(PrimitiveModel):
    """A vector as LLVM has it."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()

FLOATS = Vector(F32, LANES)
INTEGERS = Vector(I32, LANES)
WORDS = Vector(I16, 2 * LANES)
BYTES = Vector(I8, 4 * LANES)


def _constant(vector: Vector, value: float) -> ir.Constant:
    return ir.Constant(vector.llvm, [value] * vector.llvm.count)


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: int, to: ir.Type) -> Any:
    """The address of an element of an array of one axis, as that of what shall be read there."""
    of = context.make_array(array_type)(context, builder, array)
    if config.BOUNDSCHECK:
        (size,) = cgutils.unpack_tuple(builder, of.shape, 1)
        end = builder.add(index, ir.Constant(I64, count))
        below = builder.icmp_signed("<", index, ir.Constant(I64, 0))
        with builder.if_then(builder.or_(below, builder.icmp_signed(">", end, size)), likely=False):
            context.call_conv.return_user_exc(builder, IndexError, ("a vector reaches beyond its array",))
    return builder.bitcast(builder.gep(of.data, [index]), to.as_pointer())


def _load(vector: Vector, element: Any, stored: ir.Type | None = None, then: Callable[..., Any] | None = None) -> Any:
    """An intrinsic that loads a vector: `stored` in memory, where that is another type, and what follows."""
    what = stored or vector.llvm
    count = what.count if isinstance(what, ir.VectorType) else what.width // element.bitwidth

    def typed(_: Any, array: Any, index: Any) -> Any:
        if not isinstance(array, types.Array) or array.dtype != element or not isinstance(index, types.Integer):
            return None

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = context.cast(builder, arguments[1], signature.args[1], types.int64)
            pointer = _pointer(context, builder, signature.args[0], arguments[0], place, count, what)
            loaded = builder.load(pointer, align=1)
            return loaded if then is None else then(builder, loaded)

        return vector(array, index), build

    return intrinsic(typed)


def _repeat(builder: Any, value: Any, vector: Vector) -> Any:
    """A number in all lanes of a vector of such numbers, seen as `vector`."""
    lanes = vector.llvm.count * vector.llvm.element.width // value.type.width if value.type != F32 else LANES
    wide = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(wide, ir.Undefined), value, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.bitcast(builder.shuffle_vector(one, ir.Constant(wide, ir.Undefined), zeros), vector.llvm)


load_floats = _load(FLOATS, types.float32)
"""8 floats."""
load_bytes = _load(BYTES, types.uint8)
"""32 bytes."""
load_halves = _load(FLOATS, types.uint16, ir.VectorType(I16, LANES), lambda builder, loaded: _widened(builder, loaded))
"""8 half-precision numbers, widened."""
repeat_bytes = _load(BYTES, types.int8, I32, lambda builder, loaded: _repeat(builder, loaded, BYTES))
"""4 bytes, 8 times over."""
repeat_words = _load(WORDS, types.int16, I32, lambda builder, loaded: _repeat(builder, loaded, WORDS))
"""2 numbers of 16 bits, 8 times over."""


def _widened(builder: Any, loaded: Any) -> Any:
    return builder.fpext(builder.bitcast(loaded, ir.VectorType(F16, LANES)), FLOATS.llvm)


def _operation(result: Vector, arguments: tuple[Any, ...], build: Callable[..., Any]) -> Any:
    """An intrinsic from values of these types to a vector."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return build(builder, *values)

    def signature_for(*given: Any) -> Any:
        return (result(*arguments), generate) if given == arguments else None

    typings: tuple[Any, ...] = (  # Numba counts the parameters of the one that it gets
        lambda _: signature_for(),
        lambda _, a: signature_for(a),
        lambda _, a, b: signature_for(a, b),
        lambda _, a, b, c: signature_for(a, b, c),
    )
    return intrinsic(typings[len(arguments)])


broadcast = _operation(FLOATS, (types.float32,), lambda builder, value: _repeat(builder, value, FLOATS))
"""A float in all lanes."""
broadcast_integer = _operation(INTEGERS, (types.int32,), lambda builder, value: _repeat(builder, value, INTEGERS))
"""An integer in all lanes."""
integers_to_floats = _operation(FLOATS, (INTEGERS,), lambda builder, a: builder.sitofp(a, FLOATS.llvm))
fma = _operation(
    FLOATS,
    (FLOATS, FLOATS, FLOATS),
    lambda builder, a, b, c: _call(builder, "llvm.fma.v8f32", FLOATS.llvm, [a, b, c]),
)
"""a * b + c, rounded once."""
low_nibbles = _operation(BYTES, (BYTES,), lambda builder, a: builder.and_(a, _constant(BYTES, 15)))
"""The lower four bits of each byte."""
high_nibbles = _operation(BYTES, (BYTES,), lambda builder, a: builder.lshr(a, _constant(BYTES, 4)))
"""The upper four bits of each byte."""


def _even_words(builder: Any, a: Any) -> Any:
    return builder.and_(builder.bitcast(a, WORDS.llvm), _constant(WORDS, 255))


def _odd_words(builder: Any, a: Any) -> Any:
    return builder.lshr(builder.bitcast(a, WORDS.llvm), _constant(WORDS, 8))


even_words = _operation(WORDS, (BYTES,), _even_words)
"""Of each two bytes the first, without a sign, as 16 bits."""
odd_words = _operation(WORDS, (BYTES,), _odd_words)
"""Of each two bytes the second, without a sign, as 16 bits."""
add_word_products = _operation(
    INTEGERS,
    (INTEGERS, WORDS, WORDS),
    lambda builder, total, a, b: builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", INTEGERS.llvm, [a, b])),
)
"""total + a b, where each lane adds up two products of 16 bits."""
add_byte_products = _operation(
    INTEGERS,
    (INTEGERS, BYTES, BYTES),
    lambda builder, total, a, b: _call(builder, "llvm.x86.avx512.vpdpbusd.256", INTEGERS.llvm, [total, a, b]),
)
"""total + a b, where each lane adds up four products of a byte without and one with a sign."""
add_small_products = _operation(
    WORDS,
    (WORDS, BYTES, BYTES),
    lambda builder, total, a, b: builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.ub.sw", WORDS.llvm, [a, b])),
)
"""The same in 16 bits, two products a lane; the caller knows that they fit."""
no_words = _operation(WORDS, (), lambda builder: _constant(WORDS, 0))
words_to_integers = _operation(
    INTEGERS,
    (WORDS,),
    lambda builder, a: _call(builder, "llvm.x86.avx2.pmadd.wd", INTEGERS.llvm, [a, _constant(WORDS, 1)]),
)
"""The sums of each two words."""
largest_lanes = _operation(
    FLOATS,
    (FLOATS, FLOATS),
    lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b),
)
"""The larger number of each lane; b, where either is no number: one instruction, as the next."""
smaller_lanes = _operation(
    FLOATS,
    (FLOATS, FLOATS),
    lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b),
)
"""The smaller number of each lane; b, where either is no number."""
magnitudes = _operation(FLOATS, (FLOATS,), lambda builder, a: _call(builder, "llvm.fabs.v8f32", FLOATS.llvm, [a]))
"""Without signs."""
rounded = _operation(FLOATS, (FLOATS,), lambda builder, a: _call(builder, "llvm.rint.v8f32", FLOATS.llvm, [a]))
"""To whole numbers, halves to even ones."""
signs_of = _operation(
    FLOATS,
    (FLOATS, FLOATS),
    lambda builder, a, b: _call(builder, "llvm.copysign.v8f32", FLOATS.llvm, [a, b]),
)
"""a with the signs of b."""


def _powers_of_two(builder: Any, exponent: Any) -> Any:
    whole = builder.fptosi(exponent, INTEGERS.llvm)
    biased = builder.shl(builder.add(whole, _constant(INTEGERS, 127)), _constant(INTEGERS, 23))
    return builder.bitcast(biased, FLOATS.llvm)


powers_of_two = _operation(FLOATS, (FLOATS,), _powers_of_two)
"""2^n of whole numbers n from -126 to 127."""


WIDE_LANES = 2 * LANES if features().get("avx512f", False) else LANES
"""Floats of the widest vectors, for products of fp32 with several vectors: there the arithmetic is the limit."""
WIDE = Vector(F32, WIDE_LANES)

load_wide = _load(WIDE, types.float32)
"""As many floats as are wide."""
no_wide = _operation(WIDE, (), lambda builder: _constant(WIDE, 0))
wide_fma = _operation(
    WIDE,
    (WIDE, WIDE, WIDE),
    lambda builder, a, b, c: _call(builder, f"llvm.fma.v{WIDE_LANES}f32", WIDE.llvm, [a, b, c]),
)
"""a * b + c, rounded once."""


def _folded(builder: Any, a: Any) -> Any:
    if WIDE_LANES == LANES:
        return a
    halves = (
        builder.shuffle_vector(a, a, ir.Constant(ir.VectorType(I32, LANES), [*range(first, first + LANES)]))
        for first in (0, LANES)
    )
    return builder.fadd(*halves)


folded = _operation(FLOATS, (WIDE,), _folded)
"""A wide vector's halves, added up."""

_SUM, _LARGEST = "add", "max"


def _reduction(kind: str) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        total, half = values[0], LANES
        while half > 1:  # a tree of one form, so that a sum is always rounded alike
            half //= 2
            order = ir.Constant(ir.VectorType(I32, LANES), [*range(half, LANES), *range(half)])
            other = builder.shuffle_vector(total, ir.Constant(FLOATS.llvm, ir.Undefined), order)
            if kind == _SUM:
                total = builder.fadd(total, other)
            else:
                total = _call(builder, "llvm.maxnum.v8f32", FLOATS.llvm, [total, other])
        return builder.extract_element(total, ir.Constant(I32, 0))

    def typed(_: Any, a: Any) -> Any:
        return (types.float32(FLOATS), generate) if a == FLOATS else None

    return intrinsic(typed)


sum_of = _reduction(_SUM)
"""The sum of all lanes."""
largest_of = _reduction(_LARGEST)
"""The largest lane."""


def _store(element: Any, stored: ir.Type, first: Callable[..., Any] | None = None) -> Any:
    """An intrinsic that stores a vector of floats, `stored` in memory, after what is done `first`."""

    def typed(_: Any, array: Any, index: Any, value: Any) -> Any:
        if not isinstance(array, types.Array) or array.dtype != element or value != FLOATS:
            return None

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place = context.cast(builder, arguments[1], signature.args[1], types.int64)
            pointer = _pointer(context, builder, signature.args[0], arguments[0], place, LANES, stored)
            value = arguments[2] if first is None else first(builder, arguments[2])
            builder.store(value, pointer, align=1)
            return context.get_dummy_value()

        return types.void(array, index, value), build

    return intrinsic(typed)


def _whole(builder: Any, value: Any, to: ir.Type, order: list[int] | None = None) -> Any:
    whole = builder.fptosi(value, INTEGERS.llvm)
    if order is not None:
        mask = ir.Constant(ir.VectorType(I32, LANES), order)
        whole = builder.shuffle_vector(whole, ir.Constant(INTEGERS.llvm, ir.Undefined), mask)
    return builder.trunc(whole, to)


_EIGHT_BYTES, _EIGHT_WORDS, _EIGHT_HALVES = (ir.VectorType(element, LANES) for element in (I8, I16, F16))

store_floats = _store(types.float32, FLOATS.llvm)
"""8 floats."""
store_as_bytes = _store(types.int8, _EIGHT_BYTES, lambda builder, value: _whole(builder, value, _EIGHT_BYTES))
"""8 whole numbers from -128 to 127."""
store_as_words = _store(
    types.int16, _EIGHT_WORDS, lambda builder, value: _whole(builder, value, _EIGHT_WORDS, [0, 2, 1, 3, 4, 6, 5, 7])
)
"""8 whole numbers, in the order in which `even_words` and `odd_words` ask for them."""
store_as_halves = _store(
    types.uint16,
    ir.VectorType(I16, LANES),
    lambda builder, value: builder.bitcast(builder.fptrunc(value, _EIGHT_HALVES), ir.VectorType(I16, LANES)),
)
"""8 floats in half precision."""
load_small = _load(FLOATS, types.int8, _EIGHT_BYTES, lambda builder, loaded: builder.sitofp(loaded, FLOATS.llvm))
"""8 bytes with signs, as floats."""


def _view(element: Any) -> Any:
    def typed(_: Any, address: Any, count: Any) -> Any:
        if not isinstance(address, types.Integer) or not isinstance(count, types.Integer):
            return None
        array_type = types.Array(element, 1, "C")

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            place, size = (
                context.cast(builder, value, kind, types.int64)
                for value, kind in zip(arguments, signature.args, strict=True)
            )
            array = context.make_array(array_type)(context, builder)
            width = context.get_abi_sizeof(context.get_data_type(element))
            data = builder.inttoptr(place, context.get_data_type(element).as_pointer())
            populate_array(array, data, [size], [ir.Constant(I64, width)], ir.Constant(I64, width), meminfo=None)
            return array._getvalue()

        return array_type(address, count), build

    return intrinsic(typed)


floats_at = _view(types.float32)
"""The array of so many floats at an address; whoever gives the address keeps the memory."""
bytes_at = _view(types.uint8)
"""The same of bytes."""
halves_at = _view(types.uint16)
"""The same of half-precision numbers, by their bits."""

_plus = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, a, b: builder.fadd(a, b))
_minus = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, a, b: builder.fsub(a, b))
_times = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, a, b: builder.fmul(a, b))
_over = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, a, b: builder.fdiv(a, b))


def _written_as(sign: Any, operation: Any) -> None:
    @overload(sign)
    def _(a, b):  # Numba compares signatures
        if a == FLOATS and b == FLOATS:
            return lambda a, b: operation(a, b)
        return None


_written_as(operator.add, _plus)
_written_as(operator.sub, _minus)
_written_as(operator.mul, _times)
_written_as(operator.truediv, _over)


def _atomic(build: Callable[..., Any], values: int) -> Any:
    """An intrinsic on one element of an array of 64-bit integers that all threads see at once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, *given = (
            context.cast(builder, value, kind, types.int64)
            for value, kind in zip(arguments[1:], signature.args[1:], strict=True)
        )
        pointer = _pointer(context, builder, signature.args[0], arguments[0], place, 1, I64)
        return build(builder, pointer, *given)

    typings: tuple[Any, ...] = (
        lambda _, array, index: (types.int64(array, index), generate),
        lambda _, array, index, value: (types.int64(array, index, value), generate),
    )
    return intrinsic(typings[values])


def _stored(builder: Any, pointer: Any, value: Any) -> Any:
    builder.store_atomic(value, pointer, "seq_cst", 8)
    return value


atomic_add = _atomic(lambda builder, pointer, value: builder.atomic_rmw("add", pointer, value, "seq_cst"), 1)
"""Add to an element; what it was before."""
atomic_load = _atomic(lambda builder, pointer: builder.load_atomic(pointer, "seq_cst", 8), 0)
"""An element as it is now."""
atomic_store = _atomic(_stored, 1)
"""Set an element."""


@intrinsic
def pause(_):
    """Tell the processor that this thread only waits."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        return context.get_dummy_value()

    return types.void(), build


@intrinsic
def cycles(_):
    """The processor's clock."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _call(builder, "llvm.readcyclecounter", I64, [])

    return types.int64(), build


@intrinsic
def prefetch(_, array, index):
    """Have the line of memory of an element brought near; it may lie beyond the array."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        of = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = context.cast(builder, arguments[1], signature.args[1], types.int64)
        pointer = builder.bitcast(builder.gep(of.data, [place]), I8.as_pointer())
        hints = [ir.Constant(I32, value) for value in (0, 3, 1)]  # to read, soon again, data
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, *hints])
        return context.get_dummy_value()

    return types.void(array, index), build
