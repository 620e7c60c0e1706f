"""What a config would import and run, told from its text: nothing of it is run."""

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ravlt.errors import RAVLTError

# Calls that make values, or change a list or dict, and do nothing else.
_HARMLESS = {"abs", "bool", "dict", "enumerate", "float", "int", "len", "list", "max"}
_HARMLESS |= {"min", "range", "read_base", "reversed", "round", "set", "slice"}
_HARMLESS |= {"sorted", "str", "sum", "tuple", "zip"}
_METHODS = {"append", "copy", "extend", "get", "items", "keys", "pop", "update"}
_METHODS |= {"values"}
_SCOPES = {"mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain", "ravlt"}
# mmengine fills these in before it parses: {{ fileDirname }}, {{ $NAME:default }}.
_FILLED = re.compile(r"\{\{\s*(\$[^{}]*?|file\w+)\s*\}\}")


@dataclass(frozen=True)
class Risk:
    """One thing that a config would do.

    Args:
        path: The file, of the config or of one that it inherits.
        line: Where in it.
        kind: 'inherits', 'imports', 'calls', 'names' (an object that mmengine imports
            when it builds), 'reads' (what is filled in), or 'unread'.
        what: The text in question.
    """

    path: str
    line: int
    kind: str
    what: str


def find_risks(path: str) -> list[Risk]:
    """Reads a config and all that it inherits, as text.

    What looks harmless may still be clever, so that this shows where to look and
    proves nothing.

    Args:
        path: A ``.py`` file, or ``mmdet::...`` and the like.

    Raises:
        RAVLTError: If the config itself is missing, or no Python.
    """
    first = _located(path)
    if not first or not os.path.isfile(first):
        raise RAVLTError(f"Config '{path}' does not exist; correct the path.")
    if not first.endswith(".py"):
        raise RAVLTError(
            f"'{path}' is no .py file, and mmengine runs tags in YAML; read it in an "
            f"editor."
        )
    risks, pending, seen = [], [first], set()
    while pending:
        file = os.path.realpath(pending.pop())
        if file in seen:
            continue
        seen.add(file)
        for risk, base in _risks_of(file):
            risks.append(risk)
            if base and base.endswith(".py") and os.path.isfile(base):
                pending.append(base)
            elif risk.kind == "inherits":
                risks.append(Risk(file, risk.line, "unread", risk.what))
    return risks


def _risks_of(path: str) -> Iterator[tuple[Risk, str | None]]:
    """The risks of one file, with the file behind those that inherit."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for match in _FILLED.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Risk(path, line, "reads", match.group()), None
    try:
        tree = ast.parse(_FILLED.sub("None", text))
    except (SyntaxError, ValueError, RecursionError) as error:
        yield Risk(path, getattr(error, "lineno", 0) or 0, "unread", str(error)), None
        return
    inherited = _inherited(tree)
    for node in ast.walk(tree):
        for kind, what in _judge(node, inherited):
            risk = Risk(path, node.lineno, kind, what)
            yield risk, _located(what, path) if kind == "inherits" else None


def _judge(node: ast.AST, inherited: set[ast.AST]) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        yield from (("imports", alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        yield "inherits" if node in inherited else "imports", module
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {ast.unparse(target) for target in targets}
        if "_base_" in names:
            yield from (("inherits", text) for text in _texts(node.value))
        if "custom_imports" in names:
            yield from (("imports", text) for text in _texts(node.value))
    elif isinstance(node, ast.Call):
        method = isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS
        if not method and ast.unparse(node.func) not in _HARMLESS:
            yield "calls", ast.unparse(node)
        for keyword in node.keywords:
            yield from _named(keyword.arg, keyword.value)
            if keyword.arg == "custom_imports":
                yield from (("imports", text) for text in _texts(keyword.value))
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield from _named(getattr(key, "value", None), value)
    elif isinstance(node, ast.Attribute) and node.attr.startswith("__"):
        yield "calls", ast.unparse(node)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield from (("calls", f"@{ast.unparse(d)}") for d in node.decorator_list)


def _named(key, value: ast.expr) -> Iterator[tuple[str, str]]:
    """``type='os.system'`` is a call as well, when the object is built."""
    text = getattr(value, "value", None)
    if key == "type" and isinstance(text, str) and "." in text:
        scope, _, name = text.partition(".")
        if scope not in _SCOPES or "." in name:
            yield "names", text


def _texts(node: ast.expr | None) -> Iterator[str]:
    for part in ast.walk(node) if node else ():
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def _inherited(tree: ast.AST) -> set[ast.AST]:
    """Import statements by which configs in pure Python inherit."""
    return {
        statement
        for node in ast.walk(tree)
        if isinstance(node, ast.With)
        and any(ast.unparse(i.context_expr) == "read_base()" for i in node.items)
        for statement in node.body
    }


def _located(name: str, origin: str = "") -> str | None:
    """The file of ``_base_``, of an import in ``read_base``, or of ``mmdet::...``."""
    folder = os.path.dirname(origin)
    package, is_scoped, inside = name.partition("::")
    if is_scoped:
        return _shipped(package, inside)
    if not origin or name.endswith((".py", ".yml", ".yaml", ".json")):
        return os.path.join(folder, name)
    module = name.lstrip(".")
    if module != name:
        up = [os.pardir] * (len(name) - len(module) - 1)
        return os.path.join(folder, *up, *module.split(".")) + ".py"
    package, _, inside = name.partition(".")
    inside = inside.removeprefix("configs.").replace(".", "/")
    return _shipped(package, f"{inside}.py")


def _shipped(package: str, inside: str) -> str | None:
    """A config that comes with a package, which is not imported."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        return None
    if not spec or not spec.origin:
        return None
    return os.path.join(os.path.dirname(spec.origin), ".mim", "configs", inside)
