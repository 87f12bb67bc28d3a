"""The calculator computes arithmetic, and evaluates nothing else."""

import builtins
import math
import os

import pytest

from latentmas_core.context.tools.arithmetic import FUNCTIONS, MAX_DIGITS
from latentmas_core.context.tools.calculator import MAX_CHARS, MAX_DEPTH, evaluate
from latentmas_core.errors import ToolError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("10 - 4 - 3", "3"),
        ("2 ** 3 ** 2", "512"),
        ("2^10", "1024"),
        ("-2 ** 2", "-4"),
        ("(-2) ** 2", "4"),
        ("2 ** -1", "0.5"),
        ("2 ** - - 1", "2"),
        ("--3 + +3", "6"),
        ("0 ** 0", "1"),
        ("0.1 + 0.2", "0.3"),
        ("7 / 2", "3.5"),
        ("6 / 2", "3"),
        ("1 / 3", "0.333333333333333"),
        ("1 / 3 * 3", "1"),
        ("-7 // 2", "-4"),
        ("-7 % 3", "2"),
        ("7 % -3", "-2"),
        ("-7.5 // 2", "-4"),
        ("-7.5 % 2", "0.5"),
        ("7.5 // -2", "-4"),
        ("1e3", "1000"),
        (".5 + 5.", "5.5"),
        ("1.5e-10", "1.5E-10"),
        ("2 ** 0.5 ** 2", "1.18920711500272"),
        ("123456789 * 987654321", "121932631112635269"),
        ("2 ** 200", str(2**200)),
        ("10 ** 40 / 3", "3.33333333333333E+39"),
        ("-0.0", "0"),
        ("(1 + 0.05 / 12) ** 360", "4.46774431400613"),
        (" 1\n+\t1 ", "2"),
    ],
)
def test_expression_has_its_value(expression: str, value: str) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("abs(-3)", "3"),
        ("sqrt(16)", "4"),
        ("sqrt(2)", "1.4142135623731"),
        ("exp(1) / e", "1"),
        ("ln(e)", "1"),
        ("log(e ** 2)", "2"),
        ("log(8, 2)", "3"),
        ("log10(1000)", "3"),
        ("log2(1024)", "10"),
        ("sin(pi)", "0"),
        ("cos(tau)", "1"),
        ("cos(pi / 2)", "0"),
        ("sin(1e-20)", "1E-20"),
        ("tan(pi / 4)", "1"),
        ("degrees(asin(1))", "90"),
        ("acos(-1)", "3.14159265358979"),
        ("atan(1) * 4", "3.14159265358979"),
        ("radians(180)", "3.14159265358979"),
        ("floor(-2.5)", "-3"),
        ("ceil(2.1)", "3"),
        ("floor(7)", "7"),
        ("round(2.5)", "3"),
        ("round(2.675, 2)", "2.68"),
        ("round(1234, -2)", "1200"),
        ("min(3, 1, 2)", "1"),
        ("max(3, 1 + 4, 2)", "5"),
        ("gcd(12, 18.0)", "6"),
        ("factorial(20)", str(math.factorial(20))),
    ],
)
def test_function_has_its_value(expression: str, value: str) -> None:
    assert evaluate(expression) == value


def test_every_function_is_tried_above() -> None:
    marks = test_function_has_its_value.pytestmark[0].args[1]
    tried = {name for name in FUNCTIONS if any(f"{name}(" in case[0] for case in marks)}
    assert tried == set(FUNCTIONS)


ATTACKS = [
    "__import__('os').system('touch pwned')",
    "__import__",
    "__builtins__",
    "import os",
    "eval('1')",
    "exec('1')",
    "open('/etc/passwd')",
    "getattr(1, 'real')",
    "globals()",
    "(1).__class__",
    "1 .real",
    "(1).__class__.__bases__[0].__subclasses__()",
    "pi.real",
    "sqrt.__globals__",
    "sqrt",
    "sqrt(2).as_tuple()",
    "lambda: 1",
    "(lambda x: x)(1)",
    "[1 for _ in range(10)]",
    "{1: 2}",
    "[1][0]",
    "(1, 2)",
    "1 if 1 else 2",
    "1 == 1",
    "1 < 2",
    "1 or 2",
    "1 & 2",
    "1 << 1000000000",
    "~1",
    "x := 1",
    "(x := 1)",
    "x = 1",
    "pi = 3",
    "'a' * 1000000000",
    '"abc"',
    "f'{1}'",
    "f'{__import__}'",
    "b'1'",
    "1; 2",
    "1 # comment",
    "1 \\\n + 1",
    "1\x00+1",
    "\x00",
    "1\x0b+ 1",
    "\u0661 + \u0661",  # digits of Arabic
    "\uff11 + 1",  # a digit of full width
    "\u00b2",
    "2\u00b2",
    "\U0001d7d9",
    "\uff53\uff51\uff52\uff54(4)",  # sqrt in full width, which Python takes for a name
    "sq\u0433t(4)",
    "1\u200b+1",
    "\u22121",
    "0x10",
    "0b1",
    "0o7",
    "1_000",
    "1,000",
    "1j",
    "2pi",
    "2(3)",
    "(2)(3)",
    "nan",
    "inf",
    "1e999999999",
    "1e-999999999",
    "1e999999999999999999999999",
    "9**9**9",
    "9**9**9**9",
    "2**1000000",
    "2**1000001",
    "(2**3000)**3000",
    "10**1000 * 10",
    "10.0**1000000",
    "9.9**9.9**9.9**9.9",
    "0.1**1000000",
    "2**-1000000",
    "1.0000001**1e300",
    "2**-(10**900)",
    "exp(1e9)",
    "exp(-1e9)",
    "exp(exp(exp(exp(9))))",
    "factorial(1000000000)",
    "factorial(450)",
    "factorial(factorial(100))",
    "factorial(-1)",
    "factorial(2.5)",
    "factorial(1e6000)",
    "gcd(1e6000, 2)",
    "floor(1e6000)",
    "round(1, 1000000000)",
    "round(1e40, 2)",
    "sin(1e300)",
    "sin(10**900)",
    "1 / 0",
    "1 // 0",
    "1 % 0",
    "1.5 // 0",
    "0.0 / 0",
    "0 ** -1",
    "0.0 ** -1",
    "0.0 ** 0",
    "(-8) ** 0.5",
    "sqrt(-1)",
    "ln(0)",
    "ln(-1)",
    "log(2, 1)",
    "tan(pi / 2)",
    "asin(2)",
    "1e40 % 3.5",
    "(" * 400 + "1" + ")" * 50,
    "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
    "-" * 400 + "1",
    "2" + "**1" * 100,
    "abs(" * 100 + "1" + ")" * 100,
    "1" * (MAX_CHARS + 1),
    "1+" * 100_000 + "1",
    " " * 1_000_000,
    "",
    " ",
    "()",
    "1 +",
    "* 1",
    "1 2",
    "(1",
    "1)",
    "max(1(2)",
    "max(1,)",
    "max(,1)",
    "max(1)",
    "max()",
    "sqrt(1, 2)",
    "round(1, 2, 3)",
    "sqrt 4",
    "pi(1)",
    "1..2",
    "1.2.3",
    ".",
    "1e",
    "1e+",
    "**",
    "2 ** ** 2",
]


@pytest.fixture
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise AssertionError("an expression was run as code")

    for name in ("eval", "exec", "compile"):
        monkeypatch.setattr(builtins, name, refuse)
    monkeypatch.setattr(os, "system", refuse)


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize("expression", ATTACKS, ids=lambda text: ascii(text[:40]))
def test_attack_is_refused_in_words(expression: str) -> None:
    with pytest.raises(ToolError) as caught:
        evaluate(expression)
    assert caught.value.message.endswith(".")
    assert len(caught.value.message) < 400


@pytest.mark.parametrize("depth", [1, MAX_DEPTH])
def test_depth_within_the_limit_is_computed(depth: int) -> None:
    assert evaluate("(" * depth + "1" + ")" * depth) == "1"


def test_largest_numbers_are_computed_to_the_last_digit() -> None:
    assert evaluate(f"10 ** {MAX_DIGITS} - 1") == "9" * MAX_DIGITS
    assert evaluate("factorial(449)") == str(math.factorial(449))
    assert evaluate("1" * MAX_CHARS) == "1" * MAX_CHARS


def test_refusal_names_what_is_wrong_and_where() -> None:
    with pytest.raises(ToolError, match=r"character 5 is '\$'"):
        evaluate("1 + $")
    with pytest.raises(ToolError, match=r"'foo' is unknown\. Known are pi, e, tau, abs"):
        evaluate("foo(1)")
    with pytest.raises(ToolError, match="at character 3 is 2, not an operator"):
        evaluate("1 2")
    with pytest.raises(ToolError, match="divides by 0"):
        evaluate("1 / (2 - 2)")
