"""Numbers in the configuration that depend on the machine, as `4 * CORES`.

The text is parsed into a tree and only the few nodes named here are computed; nothing is ever evaluated as
code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Final

Number = int | float

#: Letters of the text, and size of any number on the way.
LONGEST: Final = 200
LARGEST: Final = 1e9

_BINARY: Final[Mapping[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}
_CALLS: Final[Mapping[str, Callable[..., Number]]] = {"min": min, "max": max}


def _value(node: ast.expr, names: Mapping[str, int]) -> Number:
    result: Number
    match node:
        case ast.Constant(value=int() | float() as result) if not isinstance(result, bool):
            pass
        case ast.Name(id=name) if name in names:
            result = names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            try:
                result = _BINARY[type(op)](_value(left, names), _value(right, names))
            except ZeroDivisionError:
                raise ValueError("it divides by zero") from None
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_value(operand, names)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if name in _CALLS:
            result = _CALLS[name]([_value(argument, names) for argument in arguments])
        case _:
            known = ", ".join(names)
            raise ValueError(f"only numbers, {known}, + - * / // ( ) and min() and max() can be used")
    if not abs(result) <= LARGEST:
        raise ValueError("a number in it is too large")
    return result


def compute(text: str, names: Mapping[str, int]) -> int:
    """The value of `text`, rounded down, where each of `names` stands for its number.

    Raises ValueError with the problem in words.
    """
    if len(text) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST} letters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError("it is not a number and not arithmetic") from None
    return int(_value(tree.body, names) // 1)
