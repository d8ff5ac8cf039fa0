"""The text of a file: decompressed and decoded. A file in another encoding is refused with the likely one.

csv_reader.py and json_reader.py read records from it."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ddl.data.formats.npy import GZIP_MAGIC, ZIP_MAGICS, first_bytes
from ddl.errors import ConfigError, DataError

BZ2_MAGIC, XZ_MAGIC = b"BZh", b"\xfd7zXZ\0"
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
LOOKED_AT = 2**16  # bytes, for a guess of the encoding
PIECE_BYTES = 2**20


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The content of a file, decompressed if it is gzip, bzip2, xz, or a zip of one file. Raises DataError."""
    head = first_bytes(path)
    try:
        if head.startswith(ZIP_MAGICS):
            with zipfile.ZipFile(path) as archive:
                names = [one.filename for one in archive.infolist() if not one.is_dir()]
                if any(name.startswith(("xl/", "[Content_Types]")) for name in names):
                    raise DataError("an Excel workbook: save its sheet as CSV", path)
                names = [name for name in names if not name.startswith("__MACOSX/")]
                if len(names) != 1:
                    raise DataError(f"a zip of {len(names)} files, where one is wanted", path)
                with archive.open(names[0]) as stream:
                    yield stream
        else:
            opener: dict[bytes, Callable[..., Any]] = {GZIP_MAGIC: gzip.open, BZ2_MAGIC: bz2.open, XZ_MAGIC: lzma.open}
            found = next((opened for magic, opened in opener.items() if head.startswith(magic)), open)
            with cast(IO[bytes], found(path, "rb")) as stream:
                yield stream
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile, NotImplementedError) as error:
        raise DataError(f"cannot be decompressed: {error}", path) from error
    except OSError as error:
        if head.startswith(BZ2_MAGIC):
            raise DataError(f"cannot be decompressed: {error}", path) from error
        raise DataError(f"cannot be read: {error.strerror or error}", path) from error


@contextmanager
def _decoding(path: Path, encoding: str) -> Iterator[tuple[IO[bytes], str]]:
    """(content of the file, name of its encoding without the byte-order mark)."""
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError as error:
        raise ConfigError(
            f"data.encoding = {encoding!r} is unknown; usual ones are utf-8, cp1252 and utf-16"
        ) from error
    with open_bytes(path) as stream:
        buffered = io.BufferedReader(stream, LOOKED_AT) if not hasattr(stream, "peek") else stream  # type: ignore[type-var]
        head = buffered.peek(4)[:4]  # type: ignore[attr-defined]
        is_marked = head.startswith(UTF_16)
        plain = encoding.lower().replace("_", "-") in ("", "utf-8", "utf8")
        try:
            yield buffered, "utf-16" if plain and is_marked else "utf-8-sig" if plain else encoding
        except UnicodeError as error:
            raise _undecoded(path, encoding, error) from error


@contextmanager
def open_text(path: Path, encoding: str = "") -> Iterator[io.TextIOWrapper]:
    """The text of a file without its byte-order mark, and with its line ends. encoding: "" is UTF-8, or UTF-16 with a
    byte-order mark. Raises DataError naming the first line that is not in this encoding."""
    with _decoding(path, encoding) as (content, known):
        yield io.TextIOWrapper(content, known, newline="")


def utf8_pieces(path: Path, encoding: str = "") -> Iterator[tuple[bytes, bool]]:
    """(piece of the same text in UTF-8, whether it is the last)."""
    with _decoding(path, encoding) as (content, known):
        decoder = codecs.getincrementaldecoder(known)()
        while raw := content.read(PIECE_BYTES):
            yield decoder.decode(raw).encode(), False
        yield decoder.decode(b"", True).encode(), True


def _undecoded(path: Path, encoding: str, error: UnicodeError) -> DataError:
    if encoding:
        return DataError(f"not {encoding} text ({error}): another data.encoding is needed", path)
    number, line = 1, b""
    with open_bytes(path) as stream:
        for number, line in enumerate(stream, 1):  # noqa: B007
            try:
                line.decode()
            except UnicodeDecodeError:
                break
    if b"\0" in line:
        likely, shown = "utf-16", ""
    else:
        # Bytes that are no letters in Latin-1 are usual signs in Windows' extension of it.
        likely = "mac_roman" if _letters(line, "mac_roman") > _letters(line, "cp1252") else "cp1252"
        try:
            text = line.decode(likely)
        except UnicodeDecodeError:
            likely, text = "latin-1", line.decode("latin-1")
        words = [word for word in text.replace(",", " ").replace(";", " ").split() if not word.isascii()]
        shown = f", in which it reads {words[0]!r}" if words else ""
    return DataError(f'not UTF-8 text: set data.encoding, likely to "{likely}"{shown}', path, number, "line")


def _letters(line: bytes, encoding: str) -> int:
    """How many of the bytes that are not ASCII are usual letters in ``encoding``."""
    usual = "äöüßàâçéèêëîïôûùñáíóúÄÖÜÉÈÀÇÑåæøÅØ€"
    return sum(char in usual for char in line.decode(encoding, "replace"))
