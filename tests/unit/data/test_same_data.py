"""Columns are matched by name wherever files meet, and a resumed run compares its data with the checkpoint's."""

import json

import numpy as np
import pytest

from ddl.data import Arrays, Inputs, Known, compare, fingerprint, labels_of, open_dataset
from ddl.errors import DataError

from .filewriters import write_csv

A, B = np.arange(8) * 1.0, np.arange(8) * -10.0
KINDS = ["no", "yes"] * 4


def rows(names):
    columns = {"a": A, "b": B, "y": KINDS}
    return [list(row) for row in zip(*(columns[name] for name in names), strict=True)]


def table(path, names):
    return str(write_csv(path, rows(names), list(names)))


def x_of(source):
    source.hold([range(len(source))])
    return source.gather(np.arange(len(source)))["x"]


WANTED = np.stack([A, B], axis=1)


@pytest.mark.parametrize("names", ["bay", "yba", "bya"])
def test_columns_of_a_test_file_are_matched_by_name(tmp_path, names):
    test = table(tmp_path / "two.csv", names)
    splits = open_dataset("files", path=table(tmp_path / "one.csv", "aby"), validation=0.0, test=test)
    assert np.array_equal(x_of(splits.test), WANTED)
    assert labels_of(splits.test).tolist() == [0, 1] * 4


def test_columns_of_several_training_files_are_matched_by_name(tmp_path):
    for name, names in (("1.csv", "aby"), ("2.csv", "bay"), ("3.csv", "yab")):
        table(tmp_path / name, names)
    splits = open_dataset("files", path=str(tmp_path), validation=0.0, test=0.0)
    assert np.array_equal(x_of(splits.train), np.tile(WANTED, (3, 1)))
    assert labels_of(splits.train).tolist() == [0, 1] * 12


def test_columns_of_a_folder_with_both_parts_are_matched_by_name(tmp_path):
    table(tmp_path / "test.csv", "bay")
    table(tmp_path / "train.csv", "aby")
    splits = open_dataset("files", path=str(tmp_path), validation=0.0, test=0.0)
    assert np.array_equal(x_of(splits.test), WANTED)


@pytest.mark.parametrize(("names", "is_labelled"), [("bay", True), ("yba", False), ("ba", False)])
def test_columns_of_new_samples_are_matched_by_name(tmp_path, names, is_labelled):
    train = open_dataset("files", path=table(tmp_path / "one.csv", "aby"), validation=0.0, test=0.0)
    known = Known.of(train.train, train.names, train.target)
    source = Inputs(is_labelled=is_labelled).open(table(tmp_path / "new.csv", names), known)
    assert np.array_equal(x_of(source), WANTED)


def test_a_column_that_is_missing_is_named(tmp_path):
    write_csv(tmp_path / "two.csv", rows("aby"), ["a", "c", "y"])
    with pytest.raises(DataError, match=r"two\.csv, line 1: no column 'b', which the training part has"):
        open_dataset("files", path=table(tmp_path / "one.csv", "aby"), validation=0.0, test=str(tmp_path / "two.csv"))


TWICE = ["a", "a", "y"]


@pytest.mark.parametrize(
    ("names", "order"), [(["a", "y", "a"], "ayb"), (["y", "a", "a"], "yab"), (["a", "b", "y"], "aby")]
)
def test_columns_of_one_name_in_another_order_are_refused(tmp_path, names, order):
    train = str(write_csv(tmp_path / "one.csv", rows("aby"), TWICE))
    test = str(write_csv(tmp_path / "two.csv", rows(order), names))
    with pytest.raises(DataError, match=r"two\.csv, line 1: several columns are called 'a', so they cannot be matched"):
        open_dataset("files", path=train, validation=0.0, test=test)


def test_columns_of_one_name_in_the_same_order_are_matched(tmp_path):
    train = str(write_csv(tmp_path / "one.csv", rows("aby"), TWICE))
    test = str(write_csv(tmp_path / "two.csv", rows("aby"), TWICE))
    splits = open_dataset("files", path=train, validation=0.0, test=test)
    assert np.array_equal(x_of(splits.test), WANTED)
    known = Known.of(splits.train, splits.names, splits.target)
    new = str(write_csv(tmp_path / "new.csv", rows("ab"), TWICE[:2]))
    assert np.array_equal(x_of(Inputs().open(new, known)), WANTED)


def test_columns_of_one_name_are_named_with_their_numbers(tmp_path):
    splits = open_dataset("files", path=str(write_csv(tmp_path / "one.csv", rows("aby"), TWICE)), validation=0.0)
    assert "columns 0 and 1 (from 0) are called 'a': distinguished by their place" in splits.train.notes


def test_a_target_that_shares_its_name_with_a_feature_is_named_by_its_number(tmp_path):
    path = str(write_csv(tmp_path / "one.csv", rows("aby"), ["a", "y", "y"]))
    with pytest.raises(DataError, match="2 columns are called 'y': name one by its number, from 0"):
        open_dataset("files", path=path)
    assert open_dataset("files", path=path, targets="2").train.fields["x"].shape == (2,)


def test_all_columns_that_are_missing_are_named(tmp_path):
    write_csv(tmp_path / "two.csv", rows("aby"), ["p", "q", "y"])
    with pytest.raises(DataError, match="no column 'a' or 'b', which the training part has: there are p, q and y"):
        open_dataset("files", path=table(tmp_path / "one.csv", "aby"), validation=0.0, test=str(tmp_path / "two.csv"))


def record(source, names=(), target=None):
    return {**Known.of(source, names, target).to_json(), "fingerprint": fingerprint(source)}


def record_of(path):
    splits = open_dataset("files", path=path, validation=0.0, test=0.0)
    return record(splits.train, splits.names, splits.target)


def test_the_same_data_can_be_resumed(tmp_path):
    path = table(tmp_path / "a.csv", "aby")
    assert compare(record_of(path), record_of(path)) == ([], [])


def test_swapped_columns_are_refused_by_name(tmp_path):
    wrong, _ = compare(record_of(table(tmp_path / "a.csv", "aby")), record_of(table(tmp_path / "b.csv", "bay")))
    assert wrong == ["the columns were a, b, y and are b, a, y"]


def test_changed_class_names_are_refused(tmp_path):
    before = record_of(table(tmp_path / "a.csv", "aby"))
    renamed = [[a, b, {"no": "never", "yes": "yes"}[kind]] for a, b, kind in rows("aby")]
    after = record_of(str(write_csv(tmp_path / "b.csv", renamed, list("aby"))))
    assert "the classes were no, yes and are never, yes" in compare(before, after)[0]


X = np.random.default_rng(0).normal(size=(100, 3))
Y = np.arange(100) % 2


@pytest.mark.parametrize(
    ("x", "y", "line"),
    [
        (X[:, ::-1], Y, "x in 32 of 32 sampled rows changed"),
        (X, 1 - Y, "y in 32 of 32 sampled rows changed"),
        (np.where(np.arange(100)[:, None] < 50, X, 0), Y, "x in 16 of 32 sampled rows changed"),
        (np.where(np.arange(100)[:, None] == 50, 0, X), Y, "some of the rows that are not sampled changed"),
        (X, np.where(np.arange(100) == 50, 1 - Y, Y), "some of the rows that are not sampled changed"),
    ],
)
def test_changed_content_is_reported_in_one_line(x, y, line):
    wrong, changed = compare(record(Arrays(X, Y)), record(Arrays(x, y)))
    assert not wrong and len(changed) == 1 and line in changed[0]


@pytest.mark.parametrize("format", ["npz", "npy", "csv", "jsonl", "txt"])
def test_one_changed_row_of_a_file_is_noticed(tmp_path, format):
    def opened(changed):
        x = np.where(np.arange(100)[:, None] == changed, 0, X)
        (folder := tmp_path / str(changed)).mkdir()
        path, y = folder / f"a.{format}", ["no", "yes"] * 50
        if format == "npz":
            np.savez_compressed(path, x=x, y=Y)
        elif format == "npy":
            np.save(path, x)
        elif format == "csv":
            write_csv(path, [[*row, kind] for row, kind in zip(x.tolist(), y, strict=True)])
        elif format == "jsonl":
            lines = (json.dumps({"text": str(row), "label": kind}) for row, kind in zip(x.tolist(), y, strict=True))
            path.write_text("\n".join(lines))
        else:
            path.write_text("\n".join(map(str, x.tolist())))
        splits = open_dataset("files", path=str(path), validation=0.0, test=0.0, options=OPTIONS.get(format))
        return record(splits.train, splits.names, splits.target)

    OPTIONS = {"txt": {"window": 8, "unit": "bytes"}}
    assert compare(opened(-1), opened(-2)) == ([], [])
    assert opened(-3)["fingerprint"]["all"] != opened(50)["fingerprint"]["all"]


@pytest.mark.parametrize(
    ("x", "y", "line"),
    [
        (X[:, :2], Y, "x was floating-point of shape (3,) and is floating-point of shape (2,)"),
        (X, Y * 1.0, "y was whole numbers below 2 of shape () and is floating-point of shape ()"),
        (X, Y * 2, "y was whole numbers below 2 of shape () and is whole numbers below 3 of shape ()"),
    ],
)
def test_another_schema_is_refused(x, y, line):
    assert line in compare(record(Arrays(X, Y)), record(Arrays(x, y)))[0]


def test_another_training_dtype_is_not_a_change_of_the_data():
    assert compare(record(Arrays(X, Y)), record(Arrays(X.astype(np.float32), Y))) == ([], [])


def test_a_checkpoint_of_an_earlier_version_is_compared_by_the_fields_it_has():
    before = record(Arrays(X, Y))
    del before["fingerprint"], before["target"]
    assert compare(before, record(Arrays(-X, Y))) == ([], [])
