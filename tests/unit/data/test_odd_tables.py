"""Tables as people send them are read at the first attempt, or refused with one line that says what to do."""

import bz2
import gzip
import io
import json
import lzma
import re
import zipfile

import numpy as np
import pytest

from ddl.data import Inputs, Known, TableSettings, labels_of, open_dataset
from ddl.errors import ConfigError, DataError

from .filewriters import write

pa = pytest.importorskip("pyarrow")
BODY = "".join(f"{7 * i % 30},{i / 4},{'uvw'[i % 3]},{'ab'[i % 2]}\n" for i in range(30))
TABLE = "p,q,r,y\n" + BODY
SAVED = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}


def zipped(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "."), text)
    return out.getvalue()


def parquet(columns):
    import pyarrow.parquet as pq

    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def feather(columns):
    out = io.BytesIO()
    table = pa.table(columns)
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return out.getvalue()


def changed(line, text):
    lines = TABLE.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


def opened(path, **given):
    settings = TableSettings(**given.pop("table", {}))
    return open_dataset("files", **{"path": str(path), "validation": 0.0, "test": 0.0, "table": settings, **given})


def x_of(source):
    source.hold([range(len(source))])
    return source.gather(np.arange(len(source)))["x"]


# name: (name of the file, content, settings, part of the one line)
REFUSED = {
    "cp1252": (
        "a.csv",
        changed(3, "1,2,Zürich,a").encode("cp1252"),
        {},
        r"line 3: not UTF-8 text: .* likely to \"cp1252\", in which it reads 'Zürich'",
    ),
    "mac": ("a.csv", changed(3, "1,2,Zürich,a").encode("mac_roman"), {}, r"line 3: .* likely to \"mac_roman\""),
    "utf-16 without a mark": ("a.csv", TABLE.encode("utf-16-le"), {}, r"set data.encoding, likely to \"utf-16-le\""),
    "another encoding": ("a.csv", "p,y\nЖ,a\n".encode(), {"encoding": "ascii"}, r"not ascii text"),
    "an unknown encoding": ("a.csv", TABLE, {"encoding": "utf-9"}, r"data.encoding = 'utf-9' is unknown"),
    "a zero byte": ("a.csv", changed(4, "1,\0,u,a"), {}, r"line 4: a zero byte"),
    "an open quote": ("a.csv", changed(5, '1,2,"u,a'), {}, r"line 5: a quoted cell does not end"),
    "a text after a quote": ("a.csv", changed(5, '1,2,"u"x,a'), {}, r"line 5: a quoted cell does not end"),
    "a short line": ("a.csv", changed(7, "1,2,u"), {}, r"line 7: 3 columns where there are 4"),
    "two long lines": (
        "a.csv",
        changed(7, "1,2,u,a,b") + "1,2,3,4,5,6\n",
        {},
        r"line 7: 5 columns .*; line 32: 6 columns",
    ),
    "a comment first": ("a.csv", "# by me, on Monday\n" + TABLE, {}, r"line 1: '# by me, on Monday' is a comment"),
    "a comment": ("a.csv", changed(9, "# half"), {}, r"line 9: '# half' is a comment"),
    "only blank lines": ("a.csv", "\n\n \n", {}, r"no samples in the file"),
    "only a header": ("a.csv", "p,q,y\n", {}, r"line 2: no samples"),
    "one column": ("a.csv", "y\na\nb\n", {}, r"a single column"),
    "no target": (
        "a.csv",
        changed(9, "1,2,u,") + "3,4,v,NA\n",
        {},
        r"line 9: no target in column 'y'; line 32: no target .* data.missing_targets",
    ),
    "a text among numbers": ("a.csv", changed(9, "1,two,u,a"), {}, r"line 9: 'two' in column 'q' is no number"),
    "infinity": ("a.csv", changed(9, "1,inf,u,a"), {}, r"line 9: 'inf' in column 'q' is not finite"),
    "too many classes": (
        "a.csv",
        "p,y\n" + "".join(f"{i % 7},name {i}\n" for i in range(1200)),
        {},
        r"over 1000 classes",
    ),
    "a target of texts": (
        "a.csv",
        "p,y\n" + "".join(f"{i % 7},name {i}\n" for i in range(90)),
        {},
        r"90 different texts .* these are no classes",
    ),
    "gzip, cut": ("a.csv.gz", gzip.compress(TABLE.encode())[:-9], {}, r"cannot be decompressed"),
    "gzip, altered": ("a.csv.gz", gzip.compress(TABLE.encode())[:20] + b"\0" * 30, {}, r"cannot be decompressed"),
    "bzip2, cut": ("a.csv.bz2", bz2.compress(TABLE.encode())[:-9], {}, r"cannot be decompressed"),
    "xz, altered": ("a.csv.xz", lzma.compress(TABLE.encode())[:40] + b"\0" * 9, {}, r"cannot be decompressed"),
    "a zip of two": ("a.csv.zip", zipped(a__csv=TABLE, b__csv=TABLE), {}, r"a zip of 2 files"),
    "a zip, cut": ("a.csv.zip", zipped(a__csv=TABLE)[:-30], {}, r"cannot be decompressed"),
    "Excel": ("a.xlsx", zipped(xl="", **{"xl/workbook__xml": ""}), {}, r"an Excel workbook: save its sheet as CSV"),
    "Excel called CSV": ("a.csv", zipped(**{"xl/workbook__xml": ""}), {}, r"an Excel workbook"),
    "old Excel": ("a.xls", b"\xd0\xcf\x11\xe0" * 9, {}, r"an Excel workbook"),
    "SQLite": ("a.db", b"SQLite format 3\0", {}, r"an SQLite database"),
    "HDF5": ("a.h5", b"\x89HDF\r\n\x1a\n", {}, r"an HDF5 file"),
    "a pickle called CSV": ("a.csv", b"\x80\x04\x95", {}, r"a pickle"),
    "a column that is not there": ("a.csv", TABLE, {"columns": ("p", "Q")}, r"no column 'Q'; did you mean 'q'"),
    "two columns that are not there": ("a.csv", TABLE, {"drop": ("s", "t")}, r"no column 's'.*no column 't'"),
    "the target as an input": ("a.csv", TABLE, {"columns": ("p", "y")}, r"name the target 'y'"),
    "an unknown type": ("a.csv", TABLE, {"types": {"p": "nummer"}}, r"data.types: p = 'nummer'; did you mean 'number'"),
    "a type of no column": ("a.csv", TABLE, {"types": {"z": "number"}}, r"data.types: no column 'z'"),
    "a type that does not fit": (
        "a.csv",
        TABLE,
        {"types": {"r": "number"}},
        r"line 2: 'u' in column 'r' is no number; line 3",
    ),
    "no date": ("a.csv", TABLE, {"types": {"r": "date"}}, r"line 2: 'u' in column 'r' is no date"),
    "all columns dropped": ("a.csv", TABLE, {"drop": ("p", "q", "r")}, r"no column is left for x"),
    "a JSON array": ("a.json", json.dumps([{"p": 1}]), {}, r"a JSON array: write one object a line"),
    "broken JSON": (
        "a.jsonl",
        '{"p": 1, "y": "a"}\n{"p": \n{"p": 2, "y": "b"}\n[1]\n',
        {},
        r"line 2: not a line of JSON.*line 4: not a JSON object",
    ),
    "lists in JSON": ("a.jsonl", '{"p": 1, "y": [1]}\n' * 9, {}, r"the target 'y' holds lists"),
    "Parquet, cut": ("a.parquet", parquet({"p": [1, 2], "y": ["a", "b"]})[:-9], {}, r"cannot be read: .*[Pp]arquet"),
    "no Parquet": ("a.parquet", TABLE, {}, r"cannot be read: .*[Pp]arquet"),
    "no rows in Parquet": (
        "a.parquet",
        parquet({"p": pa.array([], pa.int64()), "y": pa.array([], pa.string())}),
        {},
        r"no samples",
    ),
    "lists in Parquet": (
        "a.parquet",
        parquet({"p": [1, 2], "y": [[1], [2]]}),
        {},
        r"the target 'y' holds values of type list",
    ),
    "no target in Parquet": ("a.parquet", parquet({"p": [1, 2, 3], "y": ["a", None, "b"]}), {}, r"row 2: no target"),
    "not finite in Parquet": (
        "a.parquet",
        parquet({"p": [1, np.inf, 3.0], "y": ["a", "a", "b"]}),
        {},
        r"row 2: inf in column 'p' is not finite",
    ),
    "Arrow, cut": ("a.arrow", feather({"p": [1, 2], "y": ["a", "b"]})[:-9], {}, r"cannot be read"),
    "no Arrow": ("a.arrow", TABLE, {}, r"cannot be read"),
    "old Feather": ("a.feather", b"FEA1" * 9, {}, r"Feather of version 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_or_odd_file_is_refused_in_one_line(tmp_path, name):
    file, content, table, words = REFUSED[name]
    with pytest.raises((DataError, ConfigError)) as caught:
        opened(write(tmp_path / file, content), table=table)
    message = str(caught.value)
    assert re.search(words, message), message
    assert "\n" not in message and len(message) < 1500
    assert caught.value.exit_status == 2


# name: (name of the file, content, settings)
READ = {
    "CSV": ("a.csv", TABLE, {}),
    "gzip": ("a.csv.gz", gzip.compress(TABLE.encode()), {}),
    "bzip2": ("a.csv.bz2", bz2.compress(TABLE.encode()), {}),
    "xz": ("a.csv.xz", lzma.compress(TABLE.encode()), {}),
    "zip": ("a.zip", zipped(a__csv=TABLE), {}),
    "a byte-order mark": ("a.csv", b"\xef\xbb\xbf" + TABLE.encode(), {}),
    "UTF-16": ("a.csv", TABLE.encode("utf-16"), {}),
    "a declared encoding": ("a.csv", TABLE.encode("utf-16-le"), {"encoding": "utf-16-le"}),
    "CRLF": ("a.csv", TABLE.replace("\n", "\r\n"), {}),
    "CR": ("a.csv", TABLE.replace("\n", "\r"), {}),
    "tabs": ("a.tsv", TABLE.replace(",", "\t"), {}),
    "semicolons and decimal commas": ("a.csv", TABLE.replace(",", ";").replace(".", ","), {}),
    "bars": ("a.psv", TABLE.replace(",", "|"), {}),
    "quotes": ("a.csv", "".join(",".join(f'"{c}"' for c in line.split(",")) + "\n" for line in TABLE.split()), {}),
    "spaces": ("a.csv", TABLE.replace(",", " , "), {}),
    "blank lines": ("a.csv", "\n" + TABLE.replace("\n", "\n\n") + "\n \n", {}),
    "empty cells at the end": ("a.csv", TABLE.replace("\n", ",\n").replace("y,\n", "y\n"), {}),
    "names as a comment": ("a.csv", "# " + TABLE, {}),
    "a delimiter at the end": ("a.csv", TABLE.replace(",", ";").replace("\n", ";\n"), {}),
    "no header": ("a.csv", BODY, {}),
    "no last line end": ("a.csv", TABLE[:-1], {}),
    "currency": ("a.csv", "".join(f"{line}\n" if line[0] == "p" else "$ " + line + "\n" for line in TABLE.split()), {}),
    "JSONL": (
        "a.jsonl",
        "".join(
            json.dumps({"p": 7 * i % 30, "q": i / 4, "r": "uvw"[i % 3], "y": "ab"[i % 2]}) + "\n" for i in range(30)
        ),
        {},
    ),
    "JSONL within": (
        "a.ndjson",
        "".join(
            json.dumps({"in": {"p": 7 * i % 30, "q": i / 4}, "r": "uvw"[i % 3], "y": "ab"[i % 2]}) + "\n"
            for i in range(30)
        ),
        {},
    ),
    "Parquet": (
        "a.parquet",
        parquet(
            {
                "p": [7 * i % 30 for i in range(30)],
                "q": [i / 4 for i in range(30)],
                "r": list("uvw" * 10),
                "y": list("ab" * 15),
            }
        ),
        {},
    ),
    "Feather": (
        "a.feather",
        feather(
            {
                "p": pa.array([7 * i % 30 for i in range(30)], pa.int8()),
                "q": [i / 4 for i in range(30)],
                "r": pa.array(list("uvw" * 10)).dictionary_encode(),
                "y": list("ab" * 15),
            }
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_every_way_to_write_a_table_gives_the_same_samples(tmp_path, name):
    file, content, table = READ[name]
    source = opened(write(tmp_path / file, content), table=table).train
    x = x_of(source)
    wanted = [[7 * i % 30, i / 4, *(float(i % 3 == k) for k in range(3))] for i in range(30)]
    assert x.tolist() == wanted and source.names == ("a", "b")
    assert labels_of(source).tolist() == [i % 2 for i in range(30)]


def test_a_folder_of_hugging_face_is_read_by_its_splits(tmp_path):
    names = {"info": {"features": {"y": {"_type": "ClassLabel", "names": ["cold", "hot"]}}}}
    for split, count in (("train", 40), ("test", 10)):
        folder = tmp_path / split
        folder.mkdir()
        write(folder / "state.json", json.dumps(SAVED))
        table = pa.table({"p": [float(i * i) for i in range(count)], "y": [i % 2 for i in range(count)]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
        with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    write(tmp_path / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    splits = opened(tmp_path, test=0.2, validation=0.25)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (30, 10, 10)
    assert splits.names == ("cold", "hot") and x_of(splits.test)[:, 0].tolist() == [i * i for i in range(10)]
    alone = opened(tmp_path / "train")
    assert len(alone.train) == 40 and labels_of(alone.train).tolist() == [0, 1] * 20
    known = Known.from_json(Known.of(alone.train, alone.names, alone.target).to_json())
    assert len(Inputs(is_labelled=True).open(str(tmp_path / "test"), known)) == 10


def test_texts_with_classes_are_read_from_parquet_as_from_jsonl(tmp_path):
    texts = [("the cat sat", "animal"), ("the car", "thing")] * 5
    write(tmp_path / "a.parquet", parquet({"text": [t for t, _ in texts], "label": [k for _, k in texts]}))
    write(tmp_path / "a.jsonl", "".join(json.dumps({"text": t, "label": k}) + "\n" for t, k in texts))
    one, two = (opened(tmp_path / name, options={"length": 4}).train for name in ("a.parquet", "a.jsonl"))
    for source in (one, two):
        source.hold([range(3, 7)])
    assert np.array_equal(one.gather(np.arange(3, 7))["x"], two.gather(np.arange(3, 7))["x"])
    assert labels_of(one).tolist() == labels_of(two).tolist() and one.names == two.names


@pytest.mark.parametrize(
    ("cells", "day"),
    [
        (["2020-02-03", "2020-02-04"], "2020-02-03"),
        (["03.02.2020", "04.02.2020"], "2020-02-03"),
        (["02/03/2020", "02/13/2020"], "2020-02-03"),
        (["03/02/2020", "13/02/2020"], "2020-02-03"),
        (["3 Feb 2020", "13 February 2020"], "2020-02-03"),
        (["Feb 3, 2020", "Feb. 13, 2020"], "2020-02-03"),
        (["2020/2/3", "2020/12/3"], "2020-02-03"),
        (["2020-02-03T12:00:00Z", "2020-02-03 12:00:00+00:00"], "2020-02-03"),
        (["03.02.20", "13.02.20"], "2020-02-03"),
    ],
)
def test_dates_are_read_in_the_usual_forms(tmp_path, cells, day):
    text = "d;y\n" + "".join(f"{cells[i % 2]};{'ab'[i % 2]}\n" for i in range(12))
    x = x_of(opened(write(tmp_path / "a.csv", text), dtype="float64").train)
    days = (np.datetime64(day) - np.datetime64("1970-01-01")).astype(int)
    assert np.floor(x[0, 0]) == days and x[0, 1:].tolist() == [2020, 2, 3, 0]


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('"1,234.50"', 1234.5),
        ("1'234.50", 1234.5),
        ("1 234", 1234),
        ("$5", 5),
        ("€ 7.5", 7.5),
        ("12 %", 12),
        ("-$3", -3),
    ],
)
def test_numbers_are_read_as_people_write_them(tmp_path, cell, value):
    text = "p,y\n" + "".join(f"{cell if i == 3 else i / 2},{'ab'[i % 2]}\n" for i in range(12))
    assert x_of(opened(write(tmp_path / "a.csv", text)).train)[3, 0] == value


def test_quoted_cells_may_hold_line_breaks_and_errors_name_the_first_line(tmp_path):
    text = "p,t,y\n" + "".join(f'{i},"two\nlines of {i}",{"ab"[i % 2]}\n' for i in range(9))
    assert len(opened(write(tmp_path / "a.csv", text)).train) == 9
    with pytest.raises(DataError, match="line 8: 'x' in column 'p' is no number"):
        opened(write(tmp_path / "a.csv", text.replace('3,"two', 'x,"two')))


def test_a_column_with_many_categories_is_embedded_where_the_model_can(tmp_path):
    text = "city,p,y\n" + "".join(f"c{i % 40},{i % 7},{'ab'[i % 2]}\n" for i in range(400))
    path = write(tmp_path / "a.csv", text)
    source = opened(path, table={"embeds": True, "max_categories": 30}).train
    assert source.fields["x"].shape == (1,) and source.fields["categories"].size == 41
    source.hold([range(400)])
    numbers = source.gather(np.arange(400))["categories"][:, 0]
    assert len(set(numbers.tolist())) == 40 and numbers.min() == 1 and numbers[3] == numbers[43]
    assert opened(path, table={"max_categories": 30}).train.fields["x"].shape == (31,)
    known = Known.from_json(Known.of(source).to_json())
    new = Inputs().open(str(write(tmp_path / "b.csv", "city,p\nc7,1\nelsewhere,1\n")), known)
    new.hold([range(2)])
    assert new.gather(np.arange(2))["categories"][:, 0].tolist() == [numbers[7], 0]


def test_types_columns_and_missing_cells_can_be_set(tmp_path):
    text = "zip,p,q,y\n" + "".join(f"{1000 + i % 2},{-999 if i == 4 else i},{i},{'ab'[i % 2]}\n" for i in range(12))
    path = write(tmp_path / "a.csv", text)
    x = x_of(opened(path, table={"types": {"zip": "category"}, "drop": ("q",), "missing": ("-999",)}).train)
    assert x[4].tolist() == [1, 0, np.median([i for i in range(12) if i != 4]), 1]
    assert x_of(opened(path, table={"columns": ("q",)}).train)[:, 0].tolist() == list(range(12))


def test_rows_without_a_target_can_be_left_out(tmp_path):
    path = write(tmp_path / "a.csv", changed(9, "1,2,u,"))
    source = opened(path, table={"skips_missing_targets": True}).train
    assert len(source) == 29 and "1 row without a target left out" in source.notes


def test_all_that_is_wrong_with_a_file_of_new_samples_is_one_line(tmp_path):
    splits = opened(write(tmp_path / "a.csv", TABLE), table={"columns": ("p", "q", "r")})
    known = Known.from_json(Known.of(splits.train, splits.names, splits.target).to_json())
    new = write(tmp_path / "b.csv", "p,s,y\n1,2,a\nx,2,c\n3,,b\nz,1,d\n")
    with pytest.raises(DataError) as caught:
        Inputs(is_labelled=True).open(str(new), known)
    assert str(caught.value).endswith(
        "b.csv, line 1: no column 'q' or 'r', which the training part has: there are p, s and y; "
        "line 3: 'x' in column 'p' is no number; "
        "line 3: 'c' in column 'y' is none of the training part's classes, a, b; "
        "line 5: 'z' in column 'p' is no number; "
        "line 5: 'd' in column 'y' is none of the training part's classes, a, b"
    )


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet", "a.feather"])
def test_few_whole_numbers_are_classes_in_every_format(tmp_path, name):
    p, y = [i / 4 for i in range(30)], [i % 3 for i in range(30)]
    content = {
        "a.csv": "p,y\n" + "".join(f"{a},{b}\n" for a, b in zip(p, y, strict=True)),
        "a.jsonl": "".join(json.dumps({"p": a, "y": b}) + "\n" for a, b in zip(p, y, strict=True)),
        "a.parquet": parquet({"p": p, "y": y}),
        "a.feather": feather({"p": p, "y": y}),
    }[name]
    source = opened(write(tmp_path / name, content)).train
    assert source.names == ("0", "1", "2") and labels_of(source).tolist() == y
    assert x_of(source)[:, 0].tolist() == p


def test_a_list_after_many_values_of_a_key_is_refused_with_its_line(tmp_path):
    lines = [json.dumps({"p": [1] if i == 1500 else i / 4, "y": "ab"[i % 2]}) + "\n" for i in range(1600)]
    with pytest.raises(DataError, match="line 1501: a list in column 'p'"):
        opened(write(tmp_path / "a.jsonl", "".join(lines)))
