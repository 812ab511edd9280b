"""Writes into the reference what the code says: settings, schemas, routes, command lines.

    python docs/generate.py            rewrite the pages
    python docs/generate.py --check    only say which ones are not as the code would have them

A page is written by hand but for its tables. A table stands between two comments, the first of which says
what is drawn there:

    <!-- generated: struct shared.jobs.Metadata -->
    …
    <!-- end -->
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import re
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

REFERENCE: Final = Path(__file__).resolve().parent / "reference"
GENERATED: Final = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)

NONE: Final = "–"


def pages() -> dict[Path, str]:
    """Every page of the reference as it ought to be."""
    return {path: page(path.read_text(encoding="utf-8")) for path in sorted(REFERENCE.glob("*.md"))}


def page(text: str) -> str:
    """A page with its tables drawn anew."""

    def draw(found: re.Match[str]) -> str:
        what, *words = found[2].split()
        return f"{found[1]}\n{DRAW[what](*words).strip()}\n\n{found[3]}"

    return GENERATED.sub(draw, text)


# Structs and settings


def struct(path: str) -> str:
    """What a struct is for, and its fields as a table."""
    found = _find(path)
    return f"{inspect.getdoc(found)}\n\n{_fields(found, lambda kind: False)}"


def settings(path: str) -> str:
    """A settings file: a table for the top, and one for each of its sections."""
    top = _find(path)
    sections = [
        (f"[{info.name}]", section)
        for info in msgspec.structs.fields(top)
        if (section := _section(info.type)) is not None
    ]
    parts = ["## Top of the file", _fields(top, lambda kind: _section(kind) is not None)]
    said = _sentences(top)
    for title, section in sections:
        sentence = " ".join(filter(None, (inspect.getdoc(section), said.get(title.strip("[]")))))
        parts += [f"## `{title}`", sentence, _fields(section, lambda kind: False)]
    return "\n\n".join(parts)


def _fields(kind: type[msgspec.Struct], leave_out: Callable[[Any], bool]) -> str:
    said = _sentences(kind)
    rows = [
        (f"`{info.encode_name}`", _type(info.type), _default(info, sentence), sentence)
        for info in msgspec.structs.fields(kind)
        if not leave_out(info.type)
        for sentence in [said.get(info.name, "")]
    ]
    return _table(("field", "type", "default", "what it is"), rows)


def _section(kind: Any) -> type[msgspec.Struct] | None:
    """The struct behind a field, be it optional or not."""
    for one in typing.get_args(kind) or (kind,):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            return one
    return None


def _sentences(kind: type) -> dict[str, str]:
    """The docstring under each field of a class, which Python itself does not keep."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    return dict(_said(cast(ast.ClassDef, definition).body))


def _said(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    """(name, sentence) of each assignment with a docstring under it."""
    for statement, below in pairwise(body):
        match statement, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                yield name, " ".join(text.split())


def _type(kind: Any) -> str:
    """A type in the words of the file that it is written in."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _type(args[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin in (typing.Union, types.UnionType):
        return ", ".join(dict.fromkeys(_type(one) for one in args if one is not types.NoneType))
    if origin in (list, tuple):
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"table of {_type(args[1])}"
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return f"`{kind.__name__}`"
    words = {int: "integer", float: "number", str: "text", bool: "true or false", bytes: "bytes"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def _default(info: msgspec.structs.FieldInfo, sentence: str) -> str:
    if info.required:
        return "required"
    value = info.default if info.default is not msgspec.NODEFAULT else info.default_factory()
    if isinstance(value, msgspec.Struct):
        return "see below"
    if value is None or value == {} or value == []:
        return NONE
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int) and value >= 1 << 20 and "bytes" in f"{info.name} {sentence}".lower():
        size = f"{value >> 30} GiB" if value % (1 << 30) == 0 else f"{value >> 20} MiB"
        return f"`{value:_}` ({size})"
    if isinstance(value, int | float):
        return f"`{value:_}`" if value >= 10_000 else f"`{value}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


# The wire


def kind(name: str) -> str:
    """What one kind of record is for, and its columns."""
    from shared import wire

    found = wire.KINDS[name]
    source = inspect.getsource(wire)
    comments = _comments(source)
    rows = []
    for column in found.schema:
        encoded = found.encoded.field(column.name).type
        rows.append(
            (
                f"`{column.name}`",
                f"{column.type}{', as a dictionary' if encoded != column.type else ''}",
                "may be" if column.nullable else "never",
                comments.get((name.upper(), column.name)) or comments.get(("_WORK", column.name), ""),
            )
        )
    sentence = dict(_said(ast.parse(source).body))[name.upper()]
    return f"{sentence}\n\n{_table(('column', 'type', 'null', 'what it is'), rows)}"


def _comments(source: str) -> dict[tuple[str, str], str]:
    """The comment behind each key of the dictionaries of a module, by (the name assigned to, key)."""
    by_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            for node in ast.walk(statement):
                for key in node.keys if isinstance(node, ast.Dict) else ():
                    if isinstance(key, ast.Constant) and key.lineno in by_line:
                        found[statement.target.id, str(key.value)] = by_line[key.lineno]
    return found


def header() -> str:
    """The user properties of a batch."""
    from shared import lanes, wire

    said = {
        **_sentences(wire.Header),
        "epoch": "The agent's, in either direction.",
        "first": "The number of its first record.",
        "last": "The number of its last record.",
        "kind": "What its records are; the sections below.",
        "schema": f"The version of the schemas: {wire.SCHEMA_VERSION}.",
    }
    example = wire.Header(1, lanes.Span(1, 1), 1, 1, "results")
    return _table(("property", "what it is"), [(f"`{name}`", said[name]) for name in example.properties()])


# REST


def routes() -> str:
    """Every operation of the REST API."""
    from cloud_hub import events
    from cloud_hub.api import app

    nobody = cast(Any, None)  # the description needs no collaborators
    schema = app.create(nobody, nobody, events.Events()).openapi()
    rows = [
        (
            f"`{method.upper()} {path}`",
            operation["summary"],
            ", ".join(sorted(operation["responses"])),
        )
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    return _table(("address", "what it does", "answers"), rows)


# Command lines


def command(path: str) -> str:
    """A command line, as the function at `path` builds it: its commands, and the arguments of each."""
    parser: argparse.ArgumentParser = _find(path)()
    parts = [f"## `{parser.prog}`", _prose(parser.description), _arguments(parser)]
    everywhere = {option for action in parser._actions for option in action.option_strings}
    for does, below in _subcommands(parser):
        parts += [
            f"### `{below.prog}`",
            _prose(below.description or f"{does}."),
            _arguments(below, everywhere),
        ]
    return "\n\n".join(filter(None, parts))


def _subcommands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """What each command does, and its own parser; those below it follow it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            does = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, below in action.choices.items():
                if below.add_help:  # one without is another program, which helps by itself
                    yield does[word], below
                    yield from _subcommands(below)


def _arguments(parser: argparse.ArgumentParser, known: Collection[str] = ()) -> str:
    rows = [
        (f"`{_usage(action)}`", _prose((action.help or "") % vars(action)))
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        and not set(action.option_strings) & set(known)
    ]
    return _table(("argument", "what it is"), rows) if rows else ""


def _usage(action: argparse.Action) -> str:
    """How an argument is written."""
    takes = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    if action.choices is not None and action.metavar is None:
        takes = "|".join(str(choice) for choice in action.choices)
    value = {"?": f"[{takes}]", "+": f"{takes} …"}.get(str(action.nargs), str(takes))
    return f"{action.option_strings[-1]} {value}".strip() if action.option_strings else value


def _prose(text: str | None) -> str:
    said = " ".join((text or "").split())
    return said[:1].upper() + said[1:]


# Markdown


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; without its last column, if nothing stands there."""
    width = len(titles) if any(row[-1] for row in rows) else len(titles) - 1
    lines = [line[:width] for line in (titles, ["---"] * width, *rows)]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _find(path: str) -> Any:
    """What a dotted path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


DRAW: Final[dict[str, Callable[..., str]]] = {
    "struct": struct,
    "settings": settings,
    "kind": kind,
    "header": header,
    "routes": routes,
    "command": command,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python docs/generate.py")
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 if a page is stale")
    given = parser.parse_args(argv)
    stale = {path: text for path, text in pages().items() if path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(path.name)
        if not given.check:
            path.write_text(text, encoding="utf-8")
    return int(given.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
