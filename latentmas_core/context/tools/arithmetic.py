"""Numbers that cannot grow without bound: whole ones exactly, all others to 34 digits.

Every operation raises ToolError for what is undefined or larger than the limits. To be used within
``arithmetic()``, which sets the precision.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import (
    ROUND_CEILING,
    ROUND_FLOOR,
    ROUND_HALF_UP,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    Underflow,
    localcontext,
)
from typing import NamedTuple

from latentmas_core.errors import ToolError

Number = int | Decimal

MAX_DIGITS = 1000  # of a whole number
MAX_EXPONENT = 1_000_000
MAX_ANGLE = 10**12  # beyond it a float is too coarse to tell an angle
MAX_FACTORIAL = 450  # 450! is the first with more than MAX_DIGITS digits
MAX_ROUNDED_DIGITS = 30
SHOWN_DIGITS = 15

_MAX_BITS = math.ceil(MAX_DIGITS * math.log2(10))
# The range of IEEE 754's decimal128.
_CONTEXT = Context(
    prec=34,
    Emin=-6143,
    Emax=6144,
    traps=[InvalidOperation, DivisionByZero, Overflow, Underflow],
)
_PI = Decimal("3.141592653589793238462643383279502884")
_E = Decimal("2.718281828459045235360287471352662498")
CONSTANTS = {"pi": _PI, "e": _E, "tau": 2 * _PI}


@contextmanager
def arithmetic() -> Iterator[None]:
    """Computes with 34 digits; what Python says of numbers becomes a ToolError."""
    try:
        with localcontext(_CONTEXT):
            yield
    except (Overflow, OverflowError):
        raise ToolError("a number on the way is too large. Use smaller ones.") from None
    except Underflow:
        raise ToolError("a number on the way is too close to 0. Use larger ones.") from None
    except ZeroDivisionError:
        raise ToolError("it divides by 0.") from None
    except (InvalidOperation, ValueError):
        raise ToolError("it is not defined for real numbers, or not with 34 digits.") from None


def literal(text: str) -> Number:
    """A number as it is written: digits, maybe a point, maybe an exponent."""
    return bounded(int(text)) if text.isdecimal() else +Decimal(text)


def bounded(value: Number) -> Number:
    """The value itself; ToolError for a whole number that is too large, and for infinity."""
    if isinstance(value, Decimal) and not value.is_finite():
        raise InvalidOperation
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ToolError(
            f"a whole number on the way has more than {MAX_DIGITS} digits. Use smaller ones, or "
            "write one of them with a point, such as 2.0, to compute with 34 digits."
        )
    return value


def add(left: Number, right: Number) -> Number:
    """Whole numbers exactly, others to the digits of the context; see ``bounded``."""
    return bounded(left + right)


def subtract(left: Number, right: Number) -> Number:
    """Whole numbers exactly, others to the digits of the context; see ``bounded``."""
    return bounded(left - right)


def multiply(left: Number, right: Number) -> Number:
    """Whole numbers exactly, others to the digits of the context; see ``bounded``."""
    return bounded(left * right)


def divide(left: Number, right: Number) -> Number:
    """An integer where it comes out even, else rounded to the digits of the context."""
    if isinstance(left, int) and isinstance(right, int) and left % right == 0:
        return left // right
    return Decimal(left) / Decimal(right)


def floor_divide(left: Number, right: Number) -> Number:
    """Rounded down, as Python does with integers, whatever the signs."""
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    quotient, rest = divmod(Decimal(left), Decimal(right))
    return quotient - 1 if _differs_in_sign(rest, right) else quotient


def modulo(left: Number, right: Number) -> Number:
    """With the sign of ``right``."""
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    rest = Decimal(left) % Decimal(right)
    return rest + right if _differs_in_sign(rest, right) else rest


def power(base: Number, exponent: Number) -> Number:
    """Its size is estimated first: nothing is computed that would be refused."""
    if not -MAX_EXPONENT <= exponent <= MAX_EXPONENT:
        raise ToolError(f"an exponent is beyond {MAX_EXPONENT}. Use a smaller one.")
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        is_too_large = (base.bit_length() - 1) * exponent > _MAX_BITS
        return bounded(1 << (_MAX_BITS + 1) if is_too_large else base**exponent)
    if base == 0 and exponent < 0:
        raise ZeroDivisionError
    return Decimal(base) ** Decimal(exponent)


def shown(value: Number) -> str:
    """Whole numbers in full, others with 15 significant digits."""
    if isinstance(value, int):
        return str(value)
    rounded = Context(prec=SHOWN_DIGITS).plus(value).normalize()
    if rounded.is_zero():
        return "0"
    return f"{rounded:f}" if -7 <= rounded.adjusted() <= 20 else str(rounded)


def _differs_in_sign(rest: Number, right: Number) -> bool:
    return rest != 0 and (rest < 0) != (right < 0)


def _whole(value: Number, what: str) -> int:
    if isinstance(value, int):
        return value
    if value.adjusted() >= MAX_DIGITS or value != value.to_integral_value():
        raise ToolError(f"{what} has to be a whole number, and got {shown(value)}.")
    return int(value)


def _to_integer(rounding: str) -> Callable[[Number], Number]:
    def rounded(value: Number) -> Number:
        if isinstance(value, int):
            return value
        return _whole(value.to_integral_value(rounding), "a rounded number")

    return rounded


def _round(value: Number, num_digits: Number = 0) -> Number:
    """Halves away from 0, as at school."""
    places = _whole(num_digits, "the number of digits")
    if abs(places) > MAX_ROUNDED_DIGITS:
        raise ToolError(f"round takes at most {MAX_ROUNDED_DIGITS} digits, and got {places}.")
    rounded = Decimal(value).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
    return rounded if places > 0 else int(rounded)


def _by_float(function: Callable[[float], float]) -> Callable[[Number], Number]:
    """A function that is known to 53 bits only."""

    def call(value: Number) -> Number:
        return Decimal(repr(function(float(value))))

    return call


def _sin(angle: float) -> float:
    return _unless_noise(math.sin(angle), angle)


def _cos(angle: float) -> float:
    return _unless_noise(math.cos(angle), angle)


def _tan(angle: float) -> float:
    return _sin(angle) / _cos(angle)


def _unless_noise(value: float, angle: float) -> float:
    """The float next to pi is no zero of the sine: what is below its spacing counts as 0."""
    if abs(angle) > MAX_ANGLE:
        raise ToolError(f"an angle is beyond {MAX_ANGLE} radians. Use a smaller one.")
    return 0.0 if abs(value) < math.ulp(angle) else value


def _log(value: Number, base: Number = _E) -> Number:
    """Natural, unless a base is given."""
    natural = Decimal(value).ln()
    return natural if base is _E else natural / Decimal(base).ln()


def _factorial(value: Number) -> Number:
    number = _whole(value, "factorial's argument")
    if not 0 <= number <= MAX_FACTORIAL:
        raise ToolError(f"factorial takes 0 to {MAX_FACTORIAL}, and got {shown(number)}.")
    return bounded(math.factorial(number))


def _gcd(*values: Number) -> Number:
    return math.gcd(*(_whole(value, "gcd's argument") for value in values))


class Function(NamedTuple):
    """What a name in front of parentheses stands for."""

    call: Callable[..., Number]
    min_arguments: int = 1
    max_arguments: int | None = 1


FUNCTIONS = {
    "abs": Function(abs),
    "sqrt": Function(lambda value: Decimal(value).sqrt()),
    "exp": Function(lambda value: Decimal(value).exp()),
    "ln": Function(_log),
    "log": Function(_log, max_arguments=2),
    "log10": Function(lambda value: Decimal(value).log10()),
    "log2": Function(lambda value: _log(value, 2)),
    "sin": Function(_by_float(_sin)),
    "cos": Function(_by_float(_cos)),
    "tan": Function(_by_float(_tan)),
    "asin": Function(_by_float(math.asin)),
    "acos": Function(_by_float(math.acos)),
    "atan": Function(_by_float(math.atan)),
    "radians": Function(lambda value: value * _PI / 180),
    "degrees": Function(lambda value: value * 180 / _PI),
    "floor": Function(_to_integer(ROUND_FLOOR)),
    "ceil": Function(_to_integer(ROUND_CEILING)),
    "round": Function(_round, max_arguments=2),
    "min": Function(min, min_arguments=2, max_arguments=None),
    "max": Function(max, min_arguments=2, max_arguments=None),
    "gcd": Function(_gcd, min_arguments=2, max_arguments=None),
    "factorial": Function(_factorial),
}
