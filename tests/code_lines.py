#!/usr/bin/env python3
"""Count lines of code per room: lines that are neither blank nor a comment nor part of a docstring.

usage: python tests/code_lines.py [PACKAGE]      default: ddl"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def docstring_lines(source: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def code_lines(source: str) -> tuple[int, int]:
    """(lines of code, lines of comments and docstrings) of a source text."""
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in NO_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    docs = docstring_lines(source)
    return len(code - docs), len(docs | comments)


def main(package: str = "ddl") -> int:
    rooms: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for path in sorted(Path(package).rglob("*.py")):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        code, comments = code_lines(path.read_text(encoding="utf-8"))
        rooms[room] += code
        words[room] += comments
    for room in sorted(rooms):
        print(f"{room:16}{rooms[room]:7}{words[room]:7}")
    print(f"{'total':16}{sum(rooms.values()):7}{sum(words.values()):7}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
