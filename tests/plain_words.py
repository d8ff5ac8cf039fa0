#!/usr/bin/env python3
"""Lists phrases that make our prose hard to read, with file and line: places to reread, not a substitution table.

usage: python tests/plain_words.py [PATH ...]     default: ddl launch slurm tests README.md CONTRIBUTING.md docs
Looks at comments, docstrings and messages of Python files and at the text of Markdown, TOML and shell files."""

import io
import re
import sys
import tokenize
from pathlib import Path

PHRASES = {
    r"\b(tell|tells|told|telling)\b": "log, print, report, notify, or name the actor",
    r"\b(nobody|whoever|whomever|whichever)\b": "say which rank, caller or user",
    r"\b(of|on) (one's|its|their|your|a rank's|our) own\b": "your own ..., its own ...",
    r"\bin turns\b": "alternating",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bwish(es|ed)?\b": "request",
    r"\b(comes?|came) to (know|hold|be)\b": "learns, holds, becomes",
    r"\bgoe?s? on\b|\bgoing on\b": "continues, keeps training, resumes",
    r"\bwhat (it|there) is\b|\bwhat is (there|not)\b|\bwhat may not\b": "name the thing",
    r"\bas \w+ as can be\b": "as ... as possible",
    r"\bin vain\b|\blest\b|\bthereby\b|\bthereof\b|\bbesides that\b": "plain English",
    r"\bby (whom|which|what)\b|\bto whom\b|\bof whom\b": "make it active",
    r"\b(a|the) mistake\b": "an error (of the user's input), a bug (ours)",
    r"\bis (looked|cared|waited) (at|after|for)\b": "make it active",
    r"\bstands? (in|for|there|above|below|behind)\b": "is in, is above",
    r"\bthose (who|that)\b": "name them",
    r"\bbut for\b|\bsave for\b": "except",
    r"\bheld against\b": "checked against",
    r"\bfor (good|ever)\b": "permanently, indefinitely",
    r"\w\.py's\b|'s (business|affair|matter)\b": "make the module the subject: order.py computes ...",
    r"\bof (the|a) user's\b|\bof ours\b": "the user's ..., our ...",
    r"\b(some|any|every)body\b": "say which rank, caller or user",
    r"\banew\b|\bbesides\b|\bhears?\b": "again, also, receives or learns",
    r"\b(that|which|and) is no (?!longer)": "is not a",
}
PATTERNS = [(re.compile(p, re.IGNORECASE), hint) for p, hint in PHRASES.items()]
SUFFIXES = {".py", ".md", ".toml", ".sh", ".sbatch", ".cfg"}


def texts(path):
    """(line, text) of what a person reads in a file."""
    source = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING) or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
                for offset, text in enumerate(token.string.splitlines()):
                    yield token.start[0] + offset, text
    except (tokenize.TokenError, SyntaxError, IndentationError):
        return


def main(arguments):
    roots = [Path(a) for a in arguments] or [
        Path(p) for p in ("ddl", "launch", "slurm", "tests", "README.md", "CONTRIBUTING.md", "docs")
    ]
    hits = 0
    for root in roots:
        files = (
            sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES)
            if root.is_dir()
            else [root]
            if root.exists()
            else []
        )
        for path in files:
            for line, text in texts(path):
                for pattern, hint in PATTERNS:
                    match = pattern.search(text)
                    if match:
                        hits += 1
                        print(f"{path}:{line}: '{match.group(0)}' ({hint}): {text.strip()[:100]}")
    print(f"{hits} places to reread")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
