"""Arithmetic on vectors of 16 floats for numba kernels, as explicit LLVM code.

Numba leaves the use of SIMD instructions to LLVM's loop vectoriser, which gives up on a recurrence. Here the code that
is generated works on LLVM's own vector type instead: 16 channels advance in the lanes of one AVX-512 register, or of
what the processor has (LLVM splits the vector where registers are shorter, down to plain SSE2 or NEON).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
VECTOR_BYTES = 4 * LANES
LOG2_E = math.log2(math.e)

_FLOAT, _WORD, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _WORDS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_WORD, LANES)
_HALF = ir.VectorType(_FLOAT, LANES // 2)

# (2^r - 1) / r for |r| <= 1/2, fitted for the least relative error of 2^r (9e-8).
_EXP2 = (
    0.6931469775985428,
    0.24022242084661774,
    0.055507337439273274,
    0.009671512682432892,
    0.0013264727094038503,
)
# 2 artanh(s) / s in powers of s^2, for s <= 1/3, relative error 4e-9.
_ARTANH = (2.0000000079211286, 0.6666631468087112, 0.40024910323021057, 0.279606021969044, 0.28178337421276317)

_ROUNDER = 1.5 * 2.0**23
"""Added to a small float, it leaves the nearest whole number in the last bits."""

_LEAST_EXPONENT = -126.0
_MANTISSA_BITS = 23
_SOFTPLUS_IS_LINEAR_FROM = 20.0
"""As in `torch.nn.functional.softplus`."""

Value = Any
"""A value in LLVM code: a vector, a float or a 64-bit whole number. llvmlite has no types for mypy."""


class Vectors:
    """Writes LLVM code for vectors of 16 floats into the function that `builder` builds.

    Addresses are 64-bit whole numbers, in bytes.
    """

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def constant(self, value: float) -> Value:
        """The number in every lane."""
        return ir.Constant(_VECTOR, [value] * LANES)

    def load(self, address: Value) -> Value:
        """16 floats from memory."""
        return self.builder.load(self._pointer(address, _VECTOR), align=4)

    def store(self, value: Value, address: Value) -> None:
        """16 floats to memory."""
        self.builder.store(value, self._pointer(address, _VECTOR), align=4)

    def stream(self, value: Value, address: Value) -> None:
        """16 floats to memory past the caches; the address is a multiple of 64."""
        instruction = self.builder.store(value, self._pointer(address, _VECTOR), align=VECTOR_BYTES)
        instruction.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(_WORD, 1)]))

    def prefetch(self, address: Value, *, to_write: bool = False) -> None:
        """Ask for the cache line at an address, which need not exist."""
        pointer = self._pointer(address, ir.IntType(8))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _WORD, _WORD, _WORD])
        function = self.builder.module.declare_intrinsic("llvm.prefetch.p0", fnty=kind)
        near, data = ir.Constant(_WORD, 2), ir.Constant(_WORD, 1)
        self.builder.call(function, [pointer, ir.Constant(_WORD, int(to_write)), near, data])

    def load_to_all(self, address: Value) -> Value:
        """One float from memory into every lane."""
        number = self.builder.load(self._pointer(address, _FLOAT), align=4)
        first = self.builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, ir.Constant(_WORD, 0))
        return self.builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(_WORDS, [0] * LANES))

    def add(self, a: Value, b: Value) -> Value:
        """A + b."""
        return self.builder.fadd(a, b)

    def subtract(self, a: Value, b: Value) -> Value:
        """A - b."""
        return self.builder.fsub(a, b)

    def multiply(self, a: Value, b: Value) -> Value:
        """A b."""
        return self.builder.fmul(a, b)

    def divide(self, a: Value, b: Value) -> Value:
        """A / b."""
        return self.builder.fdiv(a, b)

    def multiply_add(self, a: Value, b: Value, c: Value) -> Value:
        """A b + c, in one instruction where the processor has it."""
        return self._call("llvm.fmuladd", a, b, c)

    def add_exactly(self, value: Value, place: Value, low: Value) -> None:
        """Add to the sum at `place`, and what rounding takes from it to the one `low` bytes further on.

        Source: Knuth, The Art of Computer Programming, volume 2, section 4.2.2, theorem B.
        """
        total = self.load(place)
        rounded = self.add(total, value)
        added = self.subtract(rounded, total)
        lost = self.add(self.subtract(total, self.subtract(rounded, added)), self.subtract(value, added))
        self.store(rounded, place)
        rest = self.builder.add(place, low)
        self.store(self.add(self.load(rest), lost), rest)

    def polynomial(self, coefficients: Sequence[float], x: Value) -> Value:
        """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
        value = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            value = self.multiply_add(value, x, self.constant(coefficient))
        return value

    def exp2(self, x: Value) -> Value:
        """2^x for x <= 0 (and up to 100); below -126 it is 2^-126. NaN stays NaN."""
        power, rest = self._exp2_parts(x)
        return self.multiply_add(power, rest, power)

    def exp2_minus_1(self, x: Value) -> Value:
        """2^x - 1 for the same x, exact to the last bits where x is small and 2^x is nearly 1."""
        power, rest = self._exp2_parts(x)
        return self.multiply_add(power, rest, self.subtract(power, self.constant(1.0)))

    def _exp2_parts(self, x: Value) -> tuple[Value, Value]:
        """2^k and 2^r - 1, whose sum r + k is x, k the nearest whole number.

        Adding `_ROUNDER` leaves k in the last bits, from where it is shifted into the exponent of a float.
        """
        b, least = self.builder, self.constant(_LEAST_EXPONENT)
        x = b.select(b.fcmp_ordered("<", x, least), least, x)  # this way round NaN stays NaN
        rounded = self.add(x, self.constant(_ROUNDER))
        r = self.subtract(x, self.subtract(rounded, self.constant(_ROUNDER)))
        exponent = b.shl(b.bitcast(rounded, _WORDS), ir.Constant(_WORDS, [_MANTISSA_BITS] * LANES))
        power = b.bitcast(b.add(exponent, b.bitcast(self.constant(1.0), _WORDS)), _VECTOR)
        return power, self.multiply(r, self.polynomial(_EXP2, r))

    def exp_of_minus_absolute(self, x: Value) -> Value:
        """e^-|x|."""
        return self.exp2(self.multiply(self._call("llvm.fabs", x), self.constant(-LOG2_E)))

    def sigmoid(self, x: Value) -> Value:
        """1 / (1 + e^-x), without overflow on either side."""
        small = self.exp_of_minus_absolute(x)
        one = self.constant(1.0)
        is_negative = self.builder.fcmp_ordered("<", x, self.constant(0.0))
        return self.divide(self.builder.select(is_negative, small, one), self.add(one, small))

    def softplus_and_slope(self, x: Value) -> tuple[Value, Value]:
        """log(1 + e^x), which is x itself from 20 on, and its derivative 1 / (1 + e^-x).

        log(1 + w) with w = e^-|x| is 2 artanh(s), s = w / (2 + w) <= 1/3, which is exact for the smallest w.
        """
        b, one = self.builder, self.constant(1.0)
        w = self.exp_of_minus_absolute(x)
        one_more, two_more = self.add(one, w), self.add(self.constant(2.0), w)
        reciprocal = self.divide(one, self.multiply(one_more, two_more))  # one division serves both
        s = self.multiply(self.multiply(w, one_more), reciprocal)
        series = self.polynomial(_ARTANH, self.multiply(s, s))
        value = self.multiply_add(s, series, self._call("llvm.maxnum", x, self.constant(0.0)))
        value = b.select(b.fcmp_ordered(">", x, self.constant(_SOFTPLUS_IS_LINEAR_FROM)), x, value)
        numerator = b.select(b.fcmp_ordered("<", x, self.constant(0.0)), w, one)
        slope = self.multiply(numerator, self.multiply(two_more, reciprocal))
        return value, slope

    def lane_sums(self, vectors: Sequence[Value]) -> Value:
        """The sums of 16 vectors' lanes as one vector: lane i holds the sum of vector i.

        Vectors are added in pairs, each time with half of the lanes for the one and half for the other.
        """
        vectors, distance = list(vectors), LANES
        while distance > 1:
            distance //= 2
            pairs = zip(vectors[:distance], vectors[distance:], strict=True)
            vectors = [self._sum_of_pair(first, second, distance) for first, second in pairs]
        return vectors[0]

    def _sum_of_pair(self, first: Value, second: Value, distance: int) -> Value:
        """Lane i: first[i] + first[i ^ distance] where i has the bit `distance` not set, else the same of second."""
        here = [i + LANES * bool(i & distance) for i in range(LANES)]
        there = [(i ^ distance) + LANES * bool(i & distance) for i in range(LANES)]
        parts = (self.builder.shuffle_vector(first, second, ir.Constant(_WORDS, lanes)) for lanes in (here, there))
        return self.add(*parts)

    def load_halves(self, lower: Value, upper: Value) -> Value:
        """8 floats from one address, then 8 from another."""
        parts = [self.builder.load(self._pointer(address, _HALF), align=4) for address in (lower, upper)]
        return self.builder.shuffle_vector(*parts, ir.Constant(_WORDS, list(range(LANES))))

    def store_halves(self, vector: Value, lower: Value, upper: Value) -> None:
        """The first 8 floats to one address, the last 8 to another."""
        for start, address in ((0, lower), (LANES // 2, upper)):
            lanes = ir.Constant(ir.VectorType(_WORD, LANES // 2), list(range(start, start + LANES // 2)))
            part = self.builder.shuffle_vector(vector, vector, lanes)
            self.builder.store(part, self._pointer(address, _HALF), align=4)

    def offset(self, address: Value, count: Value | int, stride: Value | int = 1) -> Value:
        """Address + count * stride, in bytes."""
        count, stride = (ir.Constant(_LONG, n) if isinstance(n, int) else n for n in (count, stride))
        return self.builder.add(address, self.builder.mul(count, stride))

    def loop(
        self, count: Value, carried: Sequence[Value], body: Callable[[Value, Sequence[Value]], Sequence[Value]]
    ) -> list[Value]:
        """`for index in range(count): carried = body(index, carried)`; returns what is carried at the end."""
        b = self.builder
        before = b.block
        head, inside, after = (b.append_basic_block(f"loop.{part}") for part in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(_LONG)
        index.add_incoming(ir.Constant(_LONG, 0), before)
        values = []
        for start in carried:
            value = b.phi(start.type)
            value.add_incoming(start, before)
            values.append(value)
        b.cbranch(b.icmp_signed("<", index, count), inside, after)
        b.position_at_end(inside)
        results = body(index, values)
        following = b.add(index, ir.Constant(_LONG, 1))
        for value, result in zip(values, results, strict=True):
            value.add_incoming(result, b.block)
        index.add_incoming(following, b.block)
        b.branch(head)
        b.position_at_end(after)
        return values

    def _pointer(self, address: Value, kind: ir.Type) -> Value:
        return self.builder.inttoptr(address, kind.as_pointer())

    def _call(self, intrinsic: str, *arguments: Value) -> Value:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(arguments))
        function = self.builder.module.declare_intrinsic(f"{intrinsic}.v{LANES}f32", fnty=kind)
        return self.builder.call(function, arguments)


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled on its first call, without Python's lock; kept on disk where there is a place for it.

    Numba takes what it kept for valid as long as the function's own file is unchanged. The name under which it looks is
    made to change with all files that the code is written in.
    """
    function.__qualname__ += f"_{_digest_of_sources()}"
    try:
        return njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return njit(nogil=True)(function)


def was_kept(function: Any) -> bool:
    """Whether numba has kept what `compiled` made of the function on disk."""
    folder = function.stats.cache_path
    return bool(folder) and any(Path(folder).glob(f"*.{function.py_func.__qualname__}-*.nbc"))


@lru_cache
def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def vector_code(write: Callable[..., None]) -> Callable[[tuple[int, ...]], None]:
    """A function that numba code calls with a tuple of whole numbers, made of the LLVM code that `write` writes."""

    @intrinsic  # type: ignore[untyped-decorator]
    def function(_context: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            write(Vectors(builder), *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        return types.void(arguments), generate

    return function  # type: ignore[no-any-return]


@vector_code
def clear(v: Vectors, target: Value, count: Value) -> None:
    """Zeros."""

    def one(i: Value, _: object) -> list[Value]:
        v.store(v.constant(0.0), v.offset(target, i, VECTOR_BYTES))
        return []

    v.loop(count, [], one)


@compiled
def aligned(buffer: Any) -> int:  # pragma: no cover - compiled
    """The first address in a buffer of bytes that is a multiple of a vector's size."""
    address: int = buffer.ctypes.data
    return address + (-address) % VECTOR_BYTES
