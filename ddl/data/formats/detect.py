"""Detect the format of a file, and open files, folders and patterns as sources.

dataset.py splits them into parts. A new format is a function and its line in FORMATS."""

from __future__ import annotations

import glob
import gzip
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ddl.data.formats.cifar import PIXELS, cifar, looks_like_cifar
from ddl.data.formats.corpus import open_text, open_tokens
from ddl.data.formats.files import Concat, pair
from ddl.data.formats.image_files import is_image_name, open_images, open_list, walk
from ddl.data.formats.npy import GZIP_MAGIC, IDX_TYPES, NPY_MAGIC, ZIP_MAGICS, first_bytes, open_idx, open_npy, open_npz
from ddl.data.formats.pixels import is_image
from ddl.data.formats.request import Parts, Request
from ddl.data.formats.rows import Rows
from ddl.data.formats.tabular import open_records
from ddl.data.formats.webdataset import open_tars
from ddl.data.source import Source
from ddl.data.tables.arrow_reader import ARROW_MAGIC, FEATHER_MAGIC, PARQUET_MAGIC, saved_parts
from ddl.errors import ConfigError, DataError
from ddl.reading import braces
from ddl.wording import closest, listed

# Arrays: x in one file, targets in another, or both in one archive.

MOST_NOTES = 5  # lines about files that are not read

LABELS = re.compile(r"label|target|idx1|(^|[_.-])y([_.-]|$)", re.IGNORECASE)
X_NAMES = ("x", "images", "data", "features", "inputs", "arr_0")
Y_NAMES = ("y", "labels", "targets", "target", "label", "arr_1")
ROLES = {"train": r"train|data_batch", "validation": r"val", "test": r"t10k|test"}


def _arrays(open_rows: Callable[[Path], Rows], paths: Sequence[Path], request: Request) -> Source:
    samples = [path for path in paths if not LABELS.search(path.name)]
    labels: list[Path] = [path for path in paths if LABELS.search(path.name)]
    if len(paths) == 1:
        samples, labels = list(paths), []
    if request.targets:
        labels = expand(request.targets)
    if not samples:
        raise DataError("only files of targets", paths[0])
    if labels and len(labels) != len(samples):
        raise DataError(f"{len(samples)} files of samples and {len(labels)} of targets", paths[0].parent)
    sources = [
        request.make(pair, "data.options", x=open_rows(x), y=open_rows(y) if y else None, dtype=request.dtype)
        for x, y in zip_longest(samples, labels)
    ]
    return sources[0] if len(sources) == 1 else Concat(sources)


def _open_npy(paths: Sequence[Path], request: Request) -> Source:
    return _arrays(open_npy, paths, request)


def _open_idx(paths: Sequence[Path], request: Request) -> Source:
    if len(paths) == 1 and not request.targets:
        # The labels of MNIST's images lie beside them under a name that follows from theirs.
        beside = paths[0].with_name(paths[0].name.replace("images", "labels").replace("idx3", "idx1"))
        if beside != paths[0] and beside.exists():
            paths = [paths[0], beside]
    return _arrays(open_idx, paths, request)


def _open_npz(paths: Sequence[Path], request: Request) -> Source | Parts:
    if len(paths) > 1:
        sources = [_open_npz([path], request) for path in paths]
        if any(isinstance(source, dict) for source in sources):
            raise DataError("archives that have their own splits cannot be joined", paths[0])
        return Concat(sources)  # type: ignore[arg-type]
    members = open_npz(paths[0])
    names = {name.lower(): name for name in members}
    parts: Parts = {}
    for role in ROLES:
        x = _member(names, X_NAMES, f"_{role}") or _member(
            names, X_NAMES, "_val" if role == "validation" else f"_{role}"
        )
        if x:
            y = _member(names, Y_NAMES, x.lower()[x.lower().rindex("_") :])
            parts[role] = _pair_of(members, x, y, request)
    if "train" in parts:
        return parts
    x, y = _member(names, X_NAMES), _member(names, Y_NAMES)
    if x is None and len(members) == 1:
        x = next(iter(members))
    if x is None:
        raise DataError(f"no array is called {listed(X_NAMES)}: there are {listed(sorted(members), 'and')}", paths[0])
    return _pair_of(members, x, y, request)


def _member(names: Mapping[str, str], wanted: Sequence[str], ending: str = "") -> str | None:
    return next((names[name + ending] for name in wanted if name + ending in names), None)


def _pair_of(members: Mapping[str, Callable[[], Rows]], x: str, y: str | None, request: Request) -> Source:
    if request.targets:
        if request.targets not in members:
            raise DataError(f"no array is called {request.targets!r}: there are {listed(sorted(members), 'and')}")
        y = request.targets
    rows = members[y]() if y else None
    return request.make(pair, "data.options", x=members[x](), y=rows, dtype=request.dtype)


# CIFAR's binary files.


def _open_cifar10(paths: Sequence[Path], request: Request) -> Source:
    _no_options(request, "cifar10")
    return Concat([cifar(path, 1 + PIXELS, (10,), request.dtype) for path in paths])


def _open_cifar100(paths: Sequence[Path], request: Request) -> Source:
    _no_options(request, "cifar100")
    return Concat([cifar(path, 2 + PIXELS, (20, 100), request.dtype) for path in paths])


def _no_options(request: Request, name: str) -> None:
    if request.options or request.targets:
        raise ConfigError(
            f"format {name} takes no targets and no options, got {request.targets or dict(request.options)}"
        )


# Text.


def _open_text(paths: Sequence[Path], request: Request) -> Source:
    return request.make(open_text, "data.options", paths=paths)


def _open_tokens(paths: Sequence[Path], request: Request) -> Source:
    sources = [request.make(open_tokens, "data.options", path=path) for path in paths]
    size = max(source.symbols.size for source in sources)
    for source in sources:
        source.symbols.size = size
    return sources[0] if len(sources) == 1 else Concat(sources)


# Images.


def _open_images(paths: Sequence[Path], request: Request) -> Source:
    return open_list(paths, request.images, request.targets, request.target_kind)


def _open_webdataset(paths: Sequence[Path], request: Request) -> Source:
    return open_tars(paths, request.images, request.targets)


def _is_array_name(name: str) -> bool:
    return SUFFIXES.get(Path(name).suffix.lower(), "text") not in ("csv", "text", "jsonl") or "ubyte" in name


FORMATS: dict[str, Callable[[Sequence[Path], Request], Source | Parts]] = {
    "npy": _open_npy,
    "npz": _open_npz,
    "idx": _open_idx,
    "cifar10": _open_cifar10,
    "cifar100": _open_cifar100,
    **{name: partial(open_records, name) for name in ("csv", "jsonl", "parquet", "arrow")},
    "text": _open_text,
    "tokens": _open_tokens,
    "images": _open_images,
    "webdataset": _open_webdataset,
}
FORMATS["hf"] = FORMATS["arrow"]  # a folder of Arrow files that Hugging Face datasets wrote by save_to_disk
TABLES = ("csv", "jsonl", "parquet", "arrow", "hf")  # formats that have columns
SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".idx": "idx",
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab", ".psv", ".data", ".dat"), "csv"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".py": "text",
    ".tar": "webdataset",
}


COMPRESSED = (".gz", ".bz2", ".xz", ".zip")  # endings after that of a format
FOREIGN = {  # first bytes of files that are not read, and what they are
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save its sheet as CSV",
    b"SQLite format 3": "an SQLite database: write its table as CSV or Parquet",
    b"\x89HDF": "an HDF5 file: save its arrays as .npz",
    b"\x80": "a pickle, which can run any code when it is read: refused",
}
MAGICS = {NPY_MAGIC: "npy", PARQUET_MAGIC: "parquet", ARROW_MAGIC: "arrow", FEATHER_MAGIC: "arrow"}


def detect(path: Path) -> str:
    """The format of a file, by its name and its first bytes. Raises DataError when it is none of FORMATS."""
    head = first_bytes(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    for magic, what in FOREIGN.items():
        if head.startswith(magic) and suffixes[-1:] != [".bin"]:
            raise DataError(what, path, 0)
    if suffixes and suffixes[-1] in SUFFIXES:
        return SUFFIXES[suffixes[-1]]
    if len(suffixes) > 1 and suffixes[-1] in COMPRESSED and SUFFIXES.get(suffixes[-2]) in ("csv", "jsonl"):
        return SUFFIXES[suffixes[-2]]
    if suffixes and suffixes[-1] == ".bin":
        return _detect_binary(path)
    if is_image_name(path.name) or is_image(head):
        return "images"
    if suffixes[-2:-1] == [".tar"] or suffixes[-1:] == [".tgz"]:
        raise DataError("a compressed tar file, whose samples cannot be read in any order: decompress it", path, 0)
    if head.startswith(GZIP_MAGIC):
        try:
            with gzip.open(path) as file:
                head = file.read(16)
        except (OSError, EOFError) as error:
            raise DataError(f"cannot be decompressed: {error}", path) from error
    if name := next((name for magic, name in MAGICS.items() if head.startswith(magic)), None):
        return name
    if head.startswith(ZIP_MAGICS):
        return _detect_zip(path)
    if len(head) >= 4 and head[:2] == b"\0\0" and head[2] in IDX_TYPES:
        return "idx"
    if "ubyte" in path.name:
        raise DataError(f"named like an IDX file, but it begins with {head[:4].hex(' ')}", path, 0)
    raise DataError(f"its format is not recognised; set data.format to {listed(sorted(FORMATS))}", path, 0)


def _detect_zip(path: Path) -> str:
    """The format of the only file in a zip, if it has columns; else npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    except (zipfile.BadZipFile, OSError):
        return "npz"  # opening it says what is wrong
    if any(name.startswith("xl/") for name in names):
        raise DataError("an Excel workbook: save its sheet as CSV", path, 0)
    found = SUFFIXES.get(Path(names[0]).suffix.lower(), "npz") if len(names) == 1 else "npz"
    return found if found in ("csv", "jsonl") else "npz"


def _detect_binary(path: Path) -> str:
    """CIFAR's records, if the size and every label fit; token numbers otherwise."""
    found = looks_like_cifar(path)
    if found:
        return found
    if re.fullmatch(r"(data_batch_\d|test_batch)\.bin", path.name):
        return "cifar10"  # truncated or mislabelled: opening it says where
    return "tokens"


def expand(pattern: str) -> list[Path]:
    """The files of a path, a folder or a pattern with wildcards, by name. Raises DataError when there are none."""
    if len(patterns := braces(pattern)) > 1:
        return [path for one in patterns for path in expand(one)]
    path = Path(pattern).expanduser()
    saved = saved_parts(path)
    if saved is not None and "" in saved:
        found = saved[""]
    elif path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    elif path.exists():
        found = [path]
    elif glob.has_magic(pattern):
        found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    else:
        raise DataError("there is no such file", path)
    if not found:
        raise DataError("no files there", path)
    return found


def open_files(pattern: str, format: str, request: Request) -> Source | Parts:
    """Open a path, folder or pattern: one source, or several if file names mark training and test files."""
    if format != "auto" and format not in FORMATS:
        near = closest(format, FORMATS)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ConfigError(f"no format is called {format!r}; there are auto, {listed(sorted(FORMATS), 'and')}{hint}")
    folder = Path(pattern).expanduser()
    if format in ("auto", "images") and folder.is_dir():
        tree = walk(folder)
        if tree.images and (format == "images" or not any(map(_is_array_name, tree.others))):
            parts = open_images(folder, tree, request.images, request.targets, request.target_kind)
            return parts["train"] if len(parts) == 1 else parts
    if format in ("auto", "hf") and (saved := _saved(Path(pattern).expanduser(), request)) is not None:
        return saved
    paths = expand(pattern)
    name = format
    skipped: list[str] = []
    if format == "auto":
        name, paths, skipped = _common_format(paths)
    opener = FORMATS[name]
    by_role = _roles(paths)
    if by_role is None:
        opened = opener(paths, request)
        _add_notes(opened["train"] if isinstance(opened, dict) else opened, skipped)
        return opened
    return _by_role(opener, by_role, request, skipped)


def _saved(folder: Path, request: Request) -> Source | Parts | None:
    """The parts of a folder that Hugging Face datasets wrote; None if it is none."""
    splits = saved_parts(folder)
    if splits is None or "" in splits:
        return None if splits is None else FORMATS["hf"](splits[""], request)  # type: ignore[return-value]
    by_role, others = {}, []
    for split, files in splits.items():
        role = next((role for role, words in ROLES.items() if re.search(words, split, re.IGNORECASE)), None)
        if role is None or role in by_role:
            others.append(f"split {split!r} is not read")
        else:
            by_role[role] = files
    if "train" not in by_role:
        raise DataError(f"no split for training, only {listed(map(repr, splits), 'and')}", folder)
    return _by_role(FORMATS["hf"], by_role, request, others)


def _by_role(
    opener: Callable[[Sequence[Path], Request], Source | Parts],
    by_role: Mapping[str, list[Path]],
    request: Request,
    notes: Sequence[str],
) -> Parts:
    parts: Parts = {}
    for role in sorted(by_role, key=lambda role: role != "train"):
        own = by_role[role]
        source = opener(own, replace(request, like=columns_of(parts["train"])) if parts else request)
        if isinstance(source, dict):
            raise DataError("an archive that has its own splits among files for each split", own[0])
        parts[role] = source
    _add_notes(parts["train"], notes)
    return parts


def _add_notes(source: Source, skipped: Sequence[str]) -> None:
    """Name the files of a folder that are not read; many of them in one line."""
    more = [f"{len(skipped) - MOST_NOTES} more files are not read"] if len(skipped) > MOST_NOTES else []
    source.notes = (*source.notes, *skipped[:MOST_NOTES], *more)


def columns_of(train: Source) -> Mapping[str, Any] | None:
    """What other CSV files are matched with; None if the training part is not read from columns."""
    learned = train.learned()
    return learned if learned.get("kind") == "columns" else None


def _common_format(paths: list[Path]) -> tuple[str, list[Path], list[str]]:
    """(format, files of it, a line for each file that is not read)."""
    if len(paths) == 1:
        return detect(paths[0]), paths, []
    by_format: dict[str, list[Path]] = {}
    skipped = []
    for path in paths:
        try:
            by_format.setdefault(detect(path), []).append(path)
        except DataError as error:  # a folder may hold other things
            skipped.append(f"not read: {error}")
    if len(by_format) > 1:  # read-me files
        skipped += [f"not read: {path}: text among files of another format" for path in by_format.pop("text", [])]
    if len(by_format) != 1:
        reasons = "".join(f"; {line}" for line in skipped[:MOST_NOTES])
        raise DataError(
            f"files of formats {sorted(by_format) or 'unknown'}: name one in data.format{reasons}", paths[0].parent
        )
    ((format, own),) = by_format.items()
    return format, own, skipped


def _roles(paths: Sequence[Path]) -> dict[str, list[Path]] | None:
    """Files by split, if every name contains a split's word and some are for training; else None."""
    by_role: dict[str, list[Path]] = {}
    for path in paths:
        role = next((role for role, words in ROLES.items() if re.search(words, path.name, re.IGNORECASE)), None)
        if role is None:
            return None
        by_role.setdefault(role, []).append(path)
    return by_role if "train" in by_role and len(by_role) > 1 else None
