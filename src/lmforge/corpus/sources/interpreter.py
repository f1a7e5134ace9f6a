"""A small safe interpreter: runs a subset of Python by walking its syntax tree, within set bounds, and gives back what
was printed.

    run("total = 0\\nfor i in range(4):\\n    total += i\\nprint(total)")   →  "6\\n"
    value("answer * 3 == 12", {"answer": 4})                                →  True

There is no import, attribute, file, exception or object model here: whole numbers (`/` only where it is exact),
booleans, strings, flat lists, functions that see their arguments alone; a loop goes over its list as it was at the
start. Nothing is handed to Python's own `exec` or `eval`, so a text can at worst be refused. Bounds: steps, depth of
calls, bits of a number, length of a list or string, characters printed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from lmforge.errors import InputError

STEPS, DEPTH, BITS, LENGTH, PRINTED = 100_000, 40, 512, 10_000, 10_000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}


class Refused(InputError):
    """The program is outside the subset, breaks a bound, or makes a mistake such as dividing by zero; the message says
    which."""


class _Return(Exception):
    def __init__(self, result: Any) -> None:
        self.result = result


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def run(program: str, steps: int = STEPS) -> str:
    """What `program` prints.

    Raises:
        Refused: not in the subset, beyond a bound, or a mistake in it.
    """
    machine = _Machine(steps)
    machine.guarded(lambda: machine.block(_parsed(program, "exec").body, {}))
    return "".join(machine.printed)


def value(expression: str, names: Mapping[str, Any] | None = None, steps: int = STEPS) -> Any:
    """The value of one expression in which `names` are known.

    Raises:
        Refused: as `run`.
    """
    machine = _Machine(steps)
    return machine.guarded(lambda: machine.value(_parsed(expression, "eval").body, dict(names or {})))


def _parsed(text: str, mode: str) -> Any:
    if len(text) > LENGTH:
        raise Refused(f"program: {len(text)} characters; at most {LENGTH} are run")
    try:
        return ast.parse(text, mode=mode)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"program: not Python ({error})") from error


class _Machine:
    """Executes statements and expressions; counts steps, calls and characters printed."""

    def __init__(self, steps: int) -> None:
        self.left, self.depth, self.size = steps, 0, 0
        self.printed: list[str] = []
        self.functions: dict[str, ast.FunctionDef] = {}
        self.builtins: dict[str, Callable[..., Any]] = {
            "print": self._print,
            "range": _range,
            "len": len,
            "sum": sum,
            "min": min,
            "max": max,
            "abs": abs,
            "sorted": sorted,
            "str": str,
            "int": int,
            "list": list,
            "reversed": lambda items: list(reversed(items)),
            "divmod": lambda a, b: list(divmod(a, b)),
        }

    def guarded(self, work: Callable[[], Any]) -> Any:
        """`work()`, its mistakes turned into `Refused`."""
        try:
            return work()
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise Refused(f"program: {type(error).__name__}: {error}") from error
        except (_Return, _Break, _Continue) as error:
            raise Refused(f"program: {type(error).__name__.strip('_').lower()} outside of what it ends") from error

    def step(self, node: ast.AST) -> None:
        self.left -= 1
        if self.left < 0:
            raise Refused(f"program: line {getattr(node, 'lineno', 1)}: more steps than allowed; does it end?")

    # Statements

    def block(self, statements: list[ast.stmt], names: dict[str, Any]) -> None:
        for statement in statements:
            self.step(statement)
            self.statement(statement, names)

    def statement(self, node: ast.stmt, names: dict[str, Any]) -> None:
        match node:
            case ast.Expr(value=inner):
                self.value(inner, names)
            case ast.Assign(targets=[target], value=inner):
                self.assign(target, self.value(inner, names), names)
            case ast.AugAssign(target=ast.Name() | ast.Subscript() as target, op=op, value=inner):
                known = ast.Name(target.id, ast.Load()) if isinstance(target, ast.Name) else target
                self.assign(target, self.binary(op, self.value(known, names), self.value(inner, names)), names)
            case ast.If(test=test, body=body, orelse=other):
                self.block(body if self.value(test, names) else other, names)
            case ast.For(target=target, iter=items, body=body, orelse=[]):
                self.loop(self.bound(target, list(self.value(items, names)), names), body, names)
            case ast.While(test=test, body=body, orelse=[]):
                self.loop(iter(lambda: bool(self.value(test, names)), False), body, names)
            case ast.FunctionDef(
                name=name,
                args=ast.arguments(posonlyargs=[], vararg=None, kwonlyargs=[], kwarg=None, defaults=[]),
                decorator_list=[],
            ):
                self.functions[name] = node
            case ast.Return(value=inner):
                raise _Return(None if inner is None else self.value(inner, names))
            case ast.Break():
                raise _Break
            case ast.Continue():
                raise _Continue
            case ast.Pass():
                pass
            case _:
                raise Refused(f"program: line {node.lineno}: {type(node).__name__} is not in the subset")

    def bound(self, target: ast.expr, items: list[Any], names: dict[str, Any]) -> Iterator[bool]:
        for item in items:
            self.assign(target, item, names)
            yield True

    def loop(self, rounds: Iterator[bool], body: list[ast.stmt], names: dict[str, Any]) -> None:
        for _ in rounds:
            try:
                self.step(body[0])
                self.block(body, names)
            except _Break:
                return
            except _Continue:
                continue

    def assign(self, target: ast.expr, new: Any, names: dict[str, Any]) -> None:
        match target:
            case ast.Name(id=name):
                names[name] = self.bounded(new)
            case ast.Subscript(value=inner, slice=index) if not isinstance(index, ast.Slice):
                self.value(inner, names)[self.value(index, names)] = self.item(new)
            case ast.Tuple(elts=parts):
                for part, item in zip(parts, list(new), strict=True):
                    self.assign(part, item, names)
            case _:
                raise Refused(f"program: line {target.lineno}: cannot assign to a {type(target).__name__} here")

    # Expressions

    def value(self, node: ast.expr, names: dict[str, Any]) -> Any:
        self.step(node)
        match node:
            case ast.Constant(value=bool() | int() | str() | None as constant):
                return self.bounded(constant)
            case ast.Name(id=name):
                if name not in names:
                    raise Refused(f"program: line {node.lineno}: the name '{name}' is not known")
                return names[name]
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(op, self.value(left, names), self.value(right, names))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
                return _UNARY[type(op)](self.value(operand, names))
            case ast.BoolOp(op=op, values=parts):
                return self.logical(isinstance(op, ast.And), parts, names)
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self.compared(self.value(left, names), ops, others, names)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.value(body if self.value(test, names) else other, names)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return [self.item(self.value(part, names)) for part in parts]
            case ast.Subscript(value=inner, slice=index):
                return self.value(inner, names)[self.index(index, names)]
            case ast.ListComp(
                elt=element, generators=[ast.comprehension(target=target, iter=items, ifs=tests, is_async=0)]
            ):
                return self.bounded(self.comprehension(element, target, items, tests, dict(names)))
            case ast.Call(func=function, args=arguments, keywords=[]):
                return self.bounded(self.call(function, [self.value(argument, names) for argument in arguments], names))
            case _:
                raise Refused(f"program: line {node.lineno}: {type(node).__name__} is not in the subset")

    def binary(self, op: ast.operator, left: Any, right: Any) -> Any:
        if isinstance(op, ast.Div):
            if left % right:
                raise Refused(f"program: {left} / {right} is no whole number")
            return left // right
        if isinstance(op, ast.Pow):
            if not 0 <= right <= BITS or max(1, int(left).bit_length()) * right > BITS:
                raise Refused(f"program: {left} ** {right} is beyond {BITS} bits")
            return left**right
        if type(op) not in _BINARY or (isinstance(op, ast.Mod) and isinstance(left, str)):
            raise Refused(f"program: the operator {type(op).__name__} is not in the subset")
        if isinstance(op, ast.Mult):
            sizes = [len(side) for side in (left, right) if isinstance(side, str | list)]
            times = [side for side in (left, right) if isinstance(side, int)]
            if sizes and times and sizes[0] * times[0] > LENGTH:
                raise Refused(f"program: a text or list beyond {LENGTH} items")
        return self.bounded(_BINARY[type(op)](left, right))

    def logical(self, every: bool, parts: list[ast.expr], names: dict[str, Any]) -> Any:
        result: Any = every
        for part in parts:
            result = self.value(part, names)
            if bool(result) != every:
                break
        return result

    def compared(self, left: Any, ops: list[ast.cmpop], others: list[ast.expr], names: dict[str, Any]) -> bool:
        for op, other in zip(ops, others, strict=True):
            if type(op) not in _COMPARED:
                raise Refused(f"program: the comparison {type(op).__name__} is not in the subset")
            right = self.value(other, names)
            if not _COMPARED[type(op)](left, right):
                return False
            left = right
        return True

    def index(self, node: ast.expr, names: dict[str, Any]) -> Any:
        if isinstance(node, ast.Slice):
            return slice(
                *(None if part is None else self.value(part, names) for part in (node.lower, node.upper, node.step))
            )
        return self.value(node, names)

    def comprehension(
        self, element: ast.expr, target: ast.expr, items: ast.expr, tests: list[ast.expr], names: dict[str, Any]
    ) -> list[Any]:
        made = []
        for item in list(self.value(items, names)):
            self.step(element)
            self.assign(target, item, names)
            if all(self.value(test, names) for test in tests):
                made.append(self.item(self.value(element, names)))
        return made

    def call(self, function: ast.expr, arguments: list[Any], names: dict[str, Any]) -> Any:
        match function:
            case ast.Name(id=name) if name in self.functions:
                return self.enter(self.functions[name], arguments)
            case ast.Name(id=name) if name in self.builtins:
                return self.builtins[name](*arguments)
            case ast.Attribute(value=inner, attr="append" | "pop" as method):
                held = self.value(inner, names)
                if not isinstance(held, list) or len(held) >= LENGTH:
                    raise Refused(
                        f"program: line {function.lineno}: {method} of what is no list, or of one that is full"
                    )
                return held.append(self.item(*arguments)) if method == "append" else held.pop(*arguments)
            case _:
                raise Refused(f"program: line {function.lineno}: this call is not in the subset")

    def enter(self, function: ast.FunctionDef, arguments: list[Any]) -> Any:
        parameters = [argument.arg for argument in function.args.args]
        if len(parameters) != len(arguments) or self.depth >= DEPTH:
            raise Refused(
                f"program: {function.name}: {len(arguments)} arguments for {len(parameters)}, or calls nested over "
                f"{DEPTH} deep"
            )
        self.depth += 1
        try:
            self.block(function.body, dict(zip(parameters, arguments, strict=True)))
        except _Return as returned:
            return returned.result
        finally:
            self.depth -= 1
        return None

    def bounded(self, item: Any) -> Any:
        """`item`, if it is of a size this machine holds."""
        if isinstance(item, int) and item.bit_length() > BITS:
            raise Refused(f"program: a number beyond {BITS} bits")
        if isinstance(item, str | list):
            self.left -= len(item) // 16  # what is made in one step is paid for by its length
            if len(item) > LENGTH:
                raise Refused(f"program: a text or list beyond {LENGTH} items")
        return item

    def item(self, item: Any) -> Any:
        """`item`, if a list may hold it: no list, so that nothing grows faster than its steps."""
        if isinstance(item, list):
            raise Refused("program: a list inside a list is not in the subset")
        return self.bounded(item)

    def _print(self, *items: Any) -> None:
        line = " ".join(map(str, items)) + "\n"
        self.size += len(line)
        if self.size > PRINTED:
            raise Refused(f"program: prints more than {PRINTED} characters")
        self.printed.append(line)


def _range(*bounds: int) -> list[int]:
    if len(range(*bounds)) > LENGTH:
        raise Refused(f"program: a range beyond {LENGTH} items")
    return list(range(*bounds))
