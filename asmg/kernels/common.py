"""Compilation of the kernels, their array types, and shared functions."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

__all__ = [
    "HALF",
    "ONE",
    "ZERO",
    "Doubles",
    "Floats",
    "Indices",
    "Rows",
    "bounds_checked",
    "compiled",
    "dot",
    "inlined",
    "log1p",
    "sigmoid",
    "tanh",
]

F = TypeVar("F", bound=Callable[..., object])
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int32]
Indices = npt.NDArray[np.int64]

# Without "nnan" and "ninf", so that NaN and infinite losses are detected.
_COMPILE: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "fastmath": {"reassoc", "contract", "arcp", "nsz"},
    "error_model": "numpy",
}


def compiled(function: F) -> F:
    """Compile a function to machine code; for type checkers it stays the same function."""
    return _jit(function)


def bounds_checked(function: F) -> F:
    """The same, with a check of each index: for whatever reads bytes that somebody else has written.

    An index outside of its array raises IndexError. A compiled function that this one calls is checked only if it is
    bounds-checked or inlined itself.
    """
    return _jit(function, boundscheck=True)


def inlined(function: F) -> F:
    """As `compiled`, and inlined into its callers."""
    return _jit(function, inline="always")


def _jit(function: F, **options: Any) -> F:
    try:
        return cast(F, njit(**_COMPILE, **options)(function))
    except RuntimeError:  # no writable cache folder: each process compiles anew
        return cast(F, njit(**{**_COMPILE, "cache": False}, **options)(function))


# tanh(x) = x·P(x²)/Q(x²) for |x| ≤ 8, fitted for the least relative error, at most 3e-7 in float32.
_LIMIT = np.float32(8.0)
_P0, _P1, _P2, _P3, _P4 = (np.float32(c) for c in (1.0, 0.13444512, 0.0035716135, 2.1894921e-05, 1.5230784e-08))
_Q0, _Q1, _Q2, _Q3, _Q4 = (np.float32(c) for c in (1.0, 0.46777838, 0.026164502, 0.00034113176, 8.522595e-07))
ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)


@inlined
def tanh(x: np.float32) -> np.float32:
    """Hyperbolic tangent by arithmetic alone, so that a loop over it is vectorised."""
    x = min(max(x, -_LIMIT), _LIMIT)
    s = x * x
    p = _P0 + s * (_P1 + s * (_P2 + s * (_P3 + s * _P4)))
    q = _Q0 + s * (_Q1 + s * (_Q2 + s * (_Q3 + s * _Q4)))
    return x * p / q


# log(m) = 2·artanh(s) = s·(2 + s²·(⅔ + …)) with s = (m-1) / (m+1), for m in [√½, √2): |s| ≤ 0.172.
_L0, _L1, _L2, _L3, _L4 = (np.float32(2 / n) for n in (1, 3, 5, 7, 9))
_LOG_2 = np.float32(np.log(2.0))
_ROOT_HALF, _FRACTION, _FRACTION_BITS = np.float32(np.sqrt(0.5)).view(np.int32), np.int32(2**23 - 1), np.int32(23)


@inlined
def log1p(x: np.float32) -> np.float32:
    """log(1 + x) for x ≥ 0 by arithmetic alone, so that a loop is vectorised; relative error at most 2e-7."""
    y = np.float32(ONE + x)
    # The bits of a float32 are its exponent and its fraction: y = 2^e·m.
    bits = np.int32(y.view(np.int32) - _ROOT_HALF)
    e = bits >> _FRACTION_BITS
    m = np.int32((bits & _FRACTION) + _ROOT_HALF).view(np.float32)
    above = x if e == 0 else m - ONE  # equal except for the rounding of y
    s = above / (above + _L0)
    s2 = s * s
    return np.float32(e) * _LOG_2 + s * (_L0 + s2 * (_L1 + s2 * (_L2 + s2 * (_L3 + s2 * _L4))))


@inlined
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + exp(-x))."""
    return HALF + HALF * tanh(HALF * x)


@inlined
def dot(a: Floats, b: Floats) -> np.float32:
    """Σ a·b over the lanes."""
    total = np.float32(ZERO)
    for lane in range(len(a)):
        total += a[lane] * b[lane]
    return total
