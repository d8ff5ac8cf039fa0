"""Damaged or inconsistent files: each raises one DataError that names the file and the position of the fault."""

import gzip
import json
import re

import numpy as np
import pytest

from ddl.data import open_dataset
from ddl.errors import ConfigError, DataError

from .filewriters import idx_bytes, images, write, write_cifar, write_csv, write_idx


def npy_bytes(array, **kwargs):
    import io

    stream = io.BytesIO()
    np.save(stream, array, **kwargs)
    return stream.getvalue()


def npz(path, save=np.savez, **arrays):
    save(path, **arrays)
    return path


def altered(path, position, value):
    content = bytearray(path.read_bytes())
    content[position] ^= value
    return write(path, bytes(content))


def cut(path, count):
    return write(path, path.read_bytes()[:-count])


def with_targets(folder, x, y):
    write(folder / "y.npy", npy_bytes(y))
    return {"path": write(folder / "x.npy", npy_bytes(x)), "targets": str(folder / "y.npy")}


ZEROS = np.zeros((9, 4), np.float32)
NAN = np.where(np.arange(36).reshape(9, 4) == 22, np.nan, 1.0)
ROWS = [[i, i / 3, "ab"[i % 2]] for i in range(9)]


def csv_row(row, cells):
    return [*ROWS[:row], cells, *ROWS[row + 1 :]]


# case: (makes the file in a folder and returns its path, part of the error message)
BAD = {
    "nothing there": (lambda d: d / "none.npy", r"none.npy: there is no such file"),
    "an empty folder": (lambda d: d, r"no files there"),
    "a pattern of nothing": (lambda d: d / "*.npy", r"no files there"),
    "a folder of two formats": (
        lambda d: write(d / "a.csv", "1,2") and write(d / "b.npy", npy_bytes(ZEROS)).parent,
        r"files of formats \['csv', 'npy'\]",
    ),
    "an unknown format": (lambda d: write(d / "a.xyz", "hello"), r"a.xyz, byte 0: its format is not recognised"),
    "a pickle": (lambda d: write(d / "batch", b"\x80\x04]q"), r"batch, byte 0: a pickle"),
    "npy: empty": (lambda d: write(d / "a.npy", b""), r"a.npy, byte 0: the file is empty"),
    "npy: another magic": (
        lambda d: write(d / "a.npy", b"PK\3\4" * 9),
        r"a.npy, byte 0: the file is not a NumPy array",
    ),
    "npy: header cut": (lambda d: write(d / "a.npy", npy_bytes(ZEROS)[:40]), r"a.npy, byte 0: .*not a NumPy array"),
    "npy: data cut": (lambda d: write(d / "a.npy", npy_bytes(ZEROS)[:-5]), r"a.npy, byte 267: truncated"),
    "npy: objects": (
        lambda d: write(d / "a.npy", npy_bytes(np.array([{}, []], object), allow_pickle=True)),
        r"a.npy, byte 0: .*Python objects",
    ),
    "npy: texts": (lambda d: write(d / "a.npy", npy_bytes(np.array(["a", "b"]))), r"a.npy: .*not of numbers"),
    "npy: complex": (lambda d: write(d / "a.npy", npy_bytes(ZEROS + 1j)), r"neither numbers nor texts"),
    "npy: a single number": (lambda d: write(d / "a.npy", npy_bytes(np.float64(3))), r"no samples"),
    "npy: no rows": (lambda d: write(d / "a.npy", npy_bytes(ZEROS[:0])), r"a.npy, byte 0: .*no samples"),
    "npy: not a number": (lambda d: write(d / "a.npy", npy_bytes(NAN)), r"a.npy, sample 5: .*not finite"),
    "npy: fewer targets": (
        lambda d: with_targets(d, ZEROS, np.zeros(8, int)),
        r"y.npy: 8 targets for the 9 samples of .*x.npy",
    ),
    "npy: more values": (lambda d: with_targets(d, ZEROS, np.zeros((10, 2))), r"y.npy: 10 targets for the 9 samples"),
    "npz: no zip": (lambda d: write(d / "a.npz", b"something else"), r"a.npz: not a whole .npz"),
    "npz: cut": (lambda d: cut(npz(d / "a.npz", x=ZEROS), 30), r"a.npz: not a whole .npz"),
    "npz: objects": (
        lambda d: npz(d / "a.npz", x=np.array([{}], object)),
        r"a.npz, byte 0: array 'x' holds Python objects",
    ),
    "npz: no x": (lambda d: npz(d / "a.npz", pictures=ZEROS, more=ZEROS), "arr_0: there are more and pictures"),
    "npz: altered": (
        lambda d: altered(npz(d / "a.npz", np.savez_compressed, x=np.random.default_rng(0).random((99, 9))), 900, 255),
        r"a.npz: cannot be decompressed",
    ),
    "npz: not a number": (lambda d: npz(d / "a.npz", np.savez_compressed, x=NAN), r"sample 5: .*finite, at index 2"),
    "npz: fewer targets": (lambda d: npz(d / "a.npz", x=ZEROS, y=np.arange(3)), r"3 targets for the 9 samples"),
    "idx: another magic": (lambda d: write(d / "x-idx3-ubyte", b"\1\2\3\4" * 9), r"byte 0: named like an IDX file"),
    "idx: unknown type": (lambda d: write(d / "x.idx", b"\0\0\7\1" * 9), r"x.idx, byte 0: not an IDX file"),
    "idx: cut in its sizes": (lambda d: write(d / "x.idx", b"\0\0\x08\x03\0\0\0\1\0\0"), r"x.idx, byte 10: truncated"),
    "idx: cut": (lambda d: cut(write_idx(d / "x.idx", images(9, 4, 4)), 7), r"x.idx, byte 153: truncated"),
    "idx: too long": (
        lambda d: write(d / "x.idx", idx_bytes(images(9, 4, 4)) + b"more"),
        r"x.idx, byte 160: 4 bytes follow",
    ),
    "idx: gzip cut": (
        lambda d: cut(write_idx(d / "x-ubyte.gz", images(99, 4, 4)), 40),
        r"x-ubyte.gz: cannot be decomp",
    ),
    "idx: gzip of too little": (
        lambda d: write(d / "x-ubyte.gz", gzip.compress(idx_bytes(images(9, 4, 4))[:-9])),
        r"x-ubyte.gz, byte 151: truncated",
    ),
    "idx: gzip of too much": (
        lambda d: write(d / "x-ubyte.gz", gzip.compress(idx_bytes(images(9, 4, 4)) + b"more")),
        r"x-ubyte.gz, byte 160: its content continues",
    ),
    "idx: fewer labels": (
        lambda d: write_idx(d / "labels-idx1-ubyte", images(8)) and write_idx(d / "images-idx3-ubyte", images(9, 4, 4)),
        r"labels-idx1-ubyte: 8 targets for the 9 samples",
    ),
    "idx: only labels": (
        lambda d: write_idx(d / "a-labels", images(8)) and write_idx(d / "b-labels", images(8)).parent,
        r"only files of targets",
    ),
    "cifar: cut": (
        lambda d: cut(write_cifar(d / "data_batch_1.bin", images(3, 32, 32, 3), [1, 2, 3]), 5),
        r"data_batch_1.bin, byte 6146: truncated",
    ),
    "cifar: a wrong label": (
        lambda d: write_cifar(d / "data_batch_1.bin", images(3, 32, 32, 3), [1, 2, 10]),
        r"data_batch_1.bin, byte 6146: label 10 of 10 classes",
    ),
    "csv: empty": (lambda d: write(d / "a.csv", ""), r"a.csv, byte 0: the file is empty"),
    "csv: only a header": (lambda d: write(d / "a.csv", "a,b\n"), r"a.csv, line 2: no samples"),
    "csv: a short line": (
        lambda d: write_csv(d / "a.csv", csv_row(5, [1, 2])),
        r"a.csv, line 6: 2 columns where there are 3",
    ),
    "csv: a long line": (
        lambda d: write_csv(d / "a.csv", csv_row(5, [1, 2, 3, 4]), ["x", "y", "z"]),
        r"a.csv, line 7: 4 columns where there are 3",
    ),
    "csv: a comment first": (
        lambda d: write(d / "a.csv", "# by me, on Monday\nx,y,z\n" + "1,2,a\n3,4,b\n" * 4),
        r"a.csv, line 1: '# by me, on Monday' is a comment, which a CSV file cannot have: delete the line",
    ),
    "csv: a comment": (
        lambda d: write(d / "a.csv", "x,y,z\n" + "1,2,a\n3,4,b\n" * 4 + "# half\n"),
        r"a.csv, line 10: '# half' is a comment",
    ),
    "csv: no number": (
        lambda d: write_csv(d / "a.csv", csv_row(5, [1, "two", "a"]), ["x", "y", "z"]),
        r"a.csv, line 7: 'two' in column 'y' is no number",
    ),
    "csv: infinity": (
        lambda d: write_csv(d / "a.csv", csv_row(5, ["inf", 1, "a"])),
        r"a.csv, line 6: 'inf' in column '0' is not finite",
    ),
    "csv: no target": (
        lambda d: write_csv(d / "a.csv", [[1, 2.5 + i] for i in range(5)] + [[1, ""]]),
        r"a.csv, line 6: no target in column '1'",
    ),
    "csv: an error after a blank line": (
        lambda d: write(d / "a.csv", "1.5,2\n\n3,4\nx,6\n"),
        r"a.csv, line 4: 'x' in column '0' is no number",
    ),
    "csv: an open quote": (lambda d: write(d / "a.csv", '1,2\n"3,4\n5,6\n'), r"a.csv, line 2: a quoted cell"),
    "csv: zero bytes": (lambda d: write(d / "a.csv", b"1,2\n3\0,4\n"), r"a.csv, line 2: a zero byte"),
    "csv: another encoding": (
        lambda d: write(d / "a.csv", "1,gr\xfcn\n".encode("latin-1") * 3),
        r"a.csv, line 1: not UTF-8",
    ),
    "csv: no such column": (
        lambda d: {"path": write_csv(d / "a.csv", ROWS, ["x", "y", "z"]), "targets": "price"},
        r"a.csv, line 1: no column 'price'; there are x, y and z",
    ),
    "jsonl: no json": (
        lambda d: write(d / "a.jsonl", '{"text": "a", "label": 1}\nno\n'),
        r"a.jsonl, line 2: not a line of JSON",
    ),
    "jsonl: no label": (
        lambda d: write(d / "a.jsonl", '{"text": "a"}\n'),
        r"a.jsonl, line 1: no 'label' in the record",
    ),
    "jsonl: no text": (
        lambda d: write(d / "a.jsonl", json.dumps({"text": 1, "label": 1})),
        r"a.jsonl, line 1: 'text' is 1",
    ),
    "jsonl: a list": (lambda d: write(d / "a.jsonl", "[1]\n"), r"a.jsonl, line 1: a JSON array"),
    "text: empty": (lambda d: write(d / "a.txt", ""), r"a.txt, byte 0: the file is empty"),
    "text: less than a window": (lambda d: write(d / "a.txt", "short"), r"a.txt: 6 symbols are less than one window"),
    "text: no characters": (
        lambda d: {"path": write(d / "a.txt", b"abc\xff" * 99), "options": {"unit": "characters"}},
        r"a.txt, byte 3: not UTF-8",
    ),
    "tokens: half a token": (
        lambda d: write(d / "a.bin", b"\1" * 601),
        r"a.bin: 601 bytes are no whole number of uint16",
    ),
    "tokens: beyond the vocabulary": (
        lambda d: {
            "path": write(d / "a.bin", np.array([1] * 200 + [50] * 99, "<u2").tobytes()),
            "options": {"vocabulary": 50},
        },
        r"a.bin, byte 400: token 50 is beyond the vocabulary of 50",
    ),
}


def read_whole(folder, made):
    """Open a dataset and read every sample, as a run would."""
    asked = made if isinstance(made, dict) else {"path": made}
    splits = open_dataset("files", **{**asked, "path": str(asked["path"]), "validation": 0.0, "test": 0.0})
    splits.train.hold([range(len(splits.train))])
    splits.train.gather(np.arange(len(splits.train)))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_the_place(tmp_path, name):
    make, words = BAD[name]
    with pytest.raises(DataError) as caught:
        read_whole(tmp_path, make(tmp_path))
    message = str(caught.value)
    assert re.search(words, message), message
    assert "\n" not in message
    assert caught.value.exit_status == 2


IMPOSSIBLE = {
    "no path": ({"source": "files"}, r"data.path names none"),
    "a path for digits": ({"source": "digits", "path": "x.csv"}, r"data.source is 'digits'"),
    "no such source": ({"source": "digit"}, r"data.source = 'digit' is unknown; did you mean 'digits'\?"),
    "no such module": ({"source": "nowhere:Data"}, r"'nowhere:Data' cannot be found"),
    "no such name in it": ({"source": "json:Data"}, r"'json:Data' cannot be found"),
    "no such option": ({"options": {"colour": 1}}, r"data source 'digits' has no option 'colour'"),
    "no such format": ({"source": "files", "path": ".", "format": "pdf"}, r"no format is called 'pdf'"),
    "a negative part": ({"validation": -0.1}, r"data.validation = -0.1 is not a fraction"),
    "a whole part": ({"test": 1.0}, r"data.test = 1.0 is not a fraction"),
    "values oversampled": ({"source": "linear", "oversample": 1.0}, r"data.oversample needs classes"),
    "nothing left": ({"validation": 0.5, "test": 0.5}, r"nothing is left to train on"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_request_names_the_setting(name):
    request, words = IMPOSSIBLE[name]
    with pytest.raises(ConfigError, match=words):
        open_dataset(request.get("source", "digits"), **{k: v for k, v in request.items() if k != "source"})


def test_a_test_file_that_does_not_fit_the_training_file_is_refused(tmp_path):
    train = write_csv(tmp_path / "a.csv", ROWS)
    for rows, words in (
        ([[1, 2, "c"]], r"b.csv, line 1: 'c' in column '2' is none of the training part's classes, a, b"),
        ([[1, 2, 3, "a"]], r"b.csv, line 1: 4 columns instead of the 3 of the training part"),
    ):
        test = write_csv(tmp_path / "b.csv", rows)
        with pytest.raises(DataError, match=words):
            open_dataset("files", path=str(train), validation=0.0, test=str(test))
