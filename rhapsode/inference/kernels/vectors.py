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


class Vector(types.Type):  # type: ignore[misc]  # Numba has no types
    """So many numbers in a register."""

    def __init__(self, element: ir.Type, lanes: int) -> None:
        self.llvm = ir.VectorType(element, lanes)
        super().__init__(name=f"Vector({self.llvm})")


@register_model(Vector)
class VectorModel(PrimitiveModel):  # type: ignore[misc]
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
load_halves = _load(
    FLOATS, types.uint16, ir.VectorType(I16, LANES), lambda builder, loaded: _halves_to_floats(builder, loaded)
)
"""8 half-precision numbers, widened."""
repeat_bytes = _load(BYTES, types.int8, I32, lambda builder, loaded: _repeat(builder, loaded, BYTES))
"""4 bytes, 8 times over."""
repeat_words = _load(WORDS, types.int16, I32, lambda builder, loaded: _repeat(builder, loaded, WORDS))
"""2 numbers of 16 bits, 8 times over."""


def _halves_to_floats(builder: Any, loaded: Any) -> Any:
    return builder.fpext(builder.bitcast(loaded, ir.VectorType(F16, LANES)), FLOATS.llvm)


def _operation(result: Vector, arguments: tuple[Any, ...], build: Callable[..., Any]) -> Any:
    """An intrinsic from values of these types to a vector."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return build(builder, *values)

    # Numba counts the parameters that a typing function has.
    if len(arguments) == 0:

        def typed(_: Any) -> Any:
            return result(), generate

    elif len(arguments) == 1:

        def typed(_: Any, a: Any) -> Any:  # type: ignore[misc]
            return (result(*arguments), generate) if a == arguments[0] else None

    elif len(arguments) == 2:

        def typed(_: Any, a: Any, b: Any) -> Any:  # type: ignore[misc]
            return (result(*arguments), generate) if (a, b) == arguments else None

    else:

        def typed(_: Any, a: Any, b: Any, c: Any) -> Any:  # type: ignore[misc]
            return (result(*arguments), generate) if (a, b, c) == arguments else None

    return intrinsic(typed)


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
    lambda builder, a, b: _call(builder, "llvm.maxnum.v8f32", FLOATS.llvm, [a, b]),
)
"""The larger number of each lane."""


def _reduction(name: str, *start: float) -> Any:
    def typed(_: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            first = [ir.Constant(F32, value) for value in start]
            half = LANES
            total = values[0]
            del first
            while half > 1:  # a tree of a fixed form, so that the sum is always rounded alike
                half //= 2
                order = [*range(half, 2 * half), *range(LANES - half)]
                mask = ir.Constant(ir.VectorType(I32, LANES), order)
                other = builder.shuffle_vector(total, ir.Constant(FLOATS.llvm, ir.Undefined), mask)
                if name == "add":
                    total = builder.fadd(total, other)
                else:
                    total = _call(builder, "llvm.maxnum.v8f32", FLOATS.llvm, [total, other])
            return builder.extract_element(total, ir.Constant(I32, 0))

        return (types.float32(FLOATS), generate) if a == FLOATS else None

    return intrinsic(typed)


sum_of = _reduction("add")
"""The sum of all lanes."""
largest_of = _reduction("max")
"""The largest lane."""

_plus = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, a, b: builder.fadd(a, b))
_times = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, a, b: builder.fmul(a, b))
_minus = _operation(FLOATS, (FLOATS, FLOATS), lambda builder, a, b: builder.fsub(a, b))


@overload(operator.add)
def _add(a, b):
    if a == FLOATS and b == FLOATS:
        return lambda a, b: _plus(a, b)
    return None


@overload(operator.mul)
def _mul(a, b):
    if a == FLOATS and b == FLOATS:
        return lambda a, b: _times(a, b)
    return None


@overload(operator.sub)
def _sub(a, b):
    if a == FLOATS and b == FLOATS:
        return lambda a, b: _minus(a, b)
    return None
