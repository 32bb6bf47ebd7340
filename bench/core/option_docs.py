"""The options of a class or function as a user sees them: name, type, default and meaning.

The meaning of an option is the comment at the end of its line, `steps: int = 10  # gradient steps`; without one, the
docstring's sentence that begins with its name, `steps: gradient steps.`, of the class or of one of its bases.
"""

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.specs import options_of, show_value, type_name


class OptionDoc(NamedTuple):
    """One option. default: as written in a spec. meaning: empty if the option is not documented."""

    name: str
    type: str
    default: str
    meaning: str


def document_options(target: Callable[..., Any]) -> list[OptionDoc]:
    """The options of a class or function, in the order of definition."""
    meanings = option_meanings(target)
    return [
        OptionDoc(name, type_name(hint), "none" if default is None else show_value(default), meanings.get(name, ""))
        for name, (hint, default) in options_of(target).items()
    ]


def option_meanings(target: Callable[..., Any]) -> dict[str, str]:
    """Return the meaning of each documented option; a subclass takes precedence over its bases."""
    classes = target.__mro__ if inspect.isclass(target) else (target,)
    meanings: dict[str, str] = {}
    for part in reversed(classes):
        if part.__module__ != "builtins":
            meanings |= _of_docstring(inspect.getdoc(part) if part is target else part.__doc__ or "")
            meanings |= _of_comments(part)
    return {name.removesuffix("_"): meaning for name, meaning in meanings.items()}


def _of_docstring(doc: str | None) -> dict[str, str]:
    """Parse `name: meaning` sentences. A meaning ends at the next such sentence, or at the end of its paragraph."""
    meanings: dict[str, str] = {}
    for paragraph in re.split(r"\n\s*\n", doc or ""):
        text = " ".join(paragraph.split())
        found = list(re.finditer(r"(?:^|(?<=[.;] ))([a-z_]\w*(?:, [a-z_]\w*)*)(?: \([^)]*\))?: ", text))
        for number, match in enumerate(found, start=1):
            end = found[number].start() if number < len(found) else len(text)
            meaning = text[match.end() : end].strip().rstrip(".;")
            meanings |= dict.fromkeys(match[1].split(", "), meaning)
    return meanings


def _of_comments(part: Any) -> dict[str, str]:
    """Read the end-of-line comments of fields, or of parameters that have a line of their own."""
    try:
        path = Path(inspect.getfile(part))
        tree, comments = _parse(path)
    except (TypeError, OSError, SyntaxError, tokenize.TokenError):  # no source, as of a class made in a shell
        return {}
    definition = next((node for node in ast.walk(tree) if _defines(node, part)), None)
    lines = dict(_named_lines(definition)) if definition is not None else {}
    return {name: comments[line] for name, line in lines.items() if line in comments}


def _defines(node: ast.AST, part: Any) -> bool:
    return isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part.__name__


def _named_lines(node: ast.AST) -> Iterator[tuple[str, int]]:
    """(option, last line of its definition)."""
    if isinstance(node, ast.ClassDef):
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                yield statement.target.id, statement.end_lineno or statement.lineno
    elif isinstance(node, ast.FunctionDef):
        lines = [argument.lineno for argument in node.args.kwonlyargs]
        yield from ((a.arg, a.lineno) for a in node.args.kwonlyargs if lines.count(a.lineno) == 1)


@cache
def _parse(path: Path) -> tuple[ast.Module, dict[int, str]]:
    """The syntax tree of a file, and the comment at the end of each line of code that has one."""
    source = path.read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
        and not re.match(r"#\s*(noqa|type:|fmt:)", token.string)
    }  # fmt: skip
    return ast.parse(source), comments
