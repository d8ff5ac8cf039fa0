"""Tables as people have them: categories, dates and missing cells become numbers, as the training part teaches."""

import numpy as np
import pytest

from ddl.data import Inputs, Known, compare, data_lines, fingerprint, labels_of, open_dataset
from ddl.errors import DataError

from .filewriters import write, write_csv

HEAD = ["age", "city", "since", "name", "member", "churn"]
CITIES, DAYS = ["Bern", "Basel", "Chur"], ["2020-02-29", "2021-03-01", "2022-12-31"]


def row(i, **changes):
    usual = {
        "age": i,
        "city": CITIES[i % 3],
        "since": DAYS[i % 3],
        "name": f"name {i}",
        "member": "yes" if i % 2 else "",
    }
    return [{**usual, "churn": "no" if i % 4 else "yes", **changes}[name] for name in HEAD]


def opened(path, **options):
    splits = open_dataset("files", **{"path": str(path), "validation": 0.0, "test": 0.0, **options})
    return splits, x_of(splits.train)


def x_of(source):
    source.hold([range(len(source))])
    return source.gather(np.arange(len(source)))["x"]


def known_of(splits):
    return Known.from_json(Known.of(splits.train, splits.names, splits.target).to_json())


ROWS = [row(i) for i in range(60)]
ROWS[5] = row(5, age="NA")


def test_cells_become_numbers_by_what_their_column_holds(tmp_path):
    splits, x = opened(write_csv(tmp_path / "a.csv", ROWS, HEAD))
    assert splits.train.fields["x"].shape == (2 + 3 + 5 + 2,)
    # age and whether it is missing; Basel, Bern, Chur; the date; member: yes, and whether it is missing
    days = (np.datetime64("2021-03-01") - np.datetime64("1970-01-01")).astype(int)
    assert x[1].tolist() == [1, 0, 1, 0, 0, days, 2021, 3, 1, 0, 1, 0]
    assert x[5, :2].tolist() == [np.median([i for i in range(60) if i != 5]), 1]
    assert x[0, -2:].tolist() == [0, 1]
    assert tuple(splits.names) == ("no", "yes")


def test_what_became_of_the_columns_is_stated(tmp_path):
    splits, _ = opened(write_csv(tmp_path / "a.csv", ROWS, HEAD))
    lines = data_lines(Known.of(splits.train, splits.names, splits.target).to_json())
    assert lines[1:5] == [
        "columns of categories, one-hot: city, member",
        "columns of dates: since",
        "columns with missing cells, marked by an extra value: age, member",
        'free text, left out (data.types makes it a "category"): name',
    ]


@pytest.mark.parametrize(
    ("days", "order"),
    [(["02/03/2020", "04/05/2021"], "month before day"), (["13/02/2020", "04/05/2021"], "day before month")],
)
def test_how_the_dates_of_a_column_are_read_is_stated(tmp_path, days, order):
    rows = [row(i, since=days[i % 2]) for i in range(60)]
    splits, _ = opened(write_csv(tmp_path / "a.csv", rows, HEAD))
    assert f"columns of dates: since ({order})" in splits.train.notes


def test_held_out_samples_teach_nothing(tmp_path):
    rows = [row(i, age=1000 if i >= 40 else i, city="Zug" if i >= 40 else CITIES[i % 3]) for i in range(60)]
    train = write_csv(tmp_path / "a.csv", [*rows[:40], row(7, age="")], HEAD)
    test = write_csv(tmp_path / "b.csv", [*rows[40:], row(7, age="")], HEAD)
    splits, x = opened(train, test=str(test))
    assert x.shape[1] == x_of(splits.test).shape[1]
    assert x_of(splits.test)[0, 2:5].tolist() == [0, 0, 0]  # a city that training did not see
    assert x_of(splits.test)[-1, 0] == np.median(np.arange(40))
    by_fraction = open_dataset("files", path=str(train), validation=0.0, test=0.5, stratify=False, seed=1)
    held = set(by_fraction.test.indices.tolist())
    ages = [i for i in range(40) if i not in held]
    assert by_fraction.train.learned()["encoding"][0]["middle"] == (np.median(ages),)


@pytest.mark.parametrize("columns", [HEAD, HEAD[:-1], ["city", "churn", "age", "name", "since", "member"]])
def test_new_samples_are_read_as_the_training_part_was(tmp_path, columns):
    splits, x = opened(write_csv(tmp_path / "a.csv", ROWS, HEAD))
    rows = [[dict(zip(HEAD, cells, strict=True))[name] for name in columns] for cells in ROWS[3:9]]
    new = str(write_csv(tmp_path / "new.csv", rows, columns))
    assert np.array_equal(x_of(Inputs().open(new, known_of(splits))), x[3:9])
    if "churn" in columns:
        labelled = Inputs(is_labelled=True).open(new, known_of(splits))
        assert np.array_equal(x_of(labelled), x[3:9])
        assert np.array_equal(labels_of(labelled), labels_of(splits.train)[3:9])


def test_several_files_are_encoded_as_one_table(tmp_path):
    (tmp_path / "whole").mkdir(), (tmp_path / "parts").mkdir()
    _, x = opened(write_csv(tmp_path / "whole" / "a.csv", ROWS, HEAD))
    write_csv(tmp_path / "parts" / "1.csv", ROWS[:9], HEAD)
    write_csv(tmp_path / "parts" / "2.csv", ROWS[9:], HEAD)
    splits, joined = opened(tmp_path / "parts")
    assert np.array_equal(x, joined)
    new = Inputs().open(str(tmp_path / "parts"), known_of(splits))
    assert np.array_equal(x_of(new), x)


def test_a_missing_cell_in_the_second_file_alone_is_a_missing_cell(tmp_path):
    write_csv(tmp_path / "1.csv", [[i, 2.5, "ab"[i % 2]] for i in range(6)], ["p", "q", "y"])
    write_csv(tmp_path / "2.csv", [["", 2.5, "a"], [9, 2.5, "b"]], ["p", "q", "y"])
    _, x = opened(tmp_path)
    assert x[6].tolist() == [3, 1, 2.5] and x[7].tolist() == [9, 0, 2.5]


def test_few_errors_in_a_column_of_numbers_are_errors(tmp_path):
    rows = [*ROWS[:9], row(9, age="about 9")]
    with pytest.raises(DataError, match=r"a\.csv, line 11: 'about 9' in column 'age' is no number"):
        opened(write_csv(tmp_path / "a.csv", rows, HEAD))
    rows = [*ROWS[:9], row(9, since="last year")]
    with pytest.raises(DataError, match=r"a\.csv, line 11: 'last year' in column 'since' is no date"):
        opened(write_csv(tmp_path / "a.csv", rows, HEAD))


@pytest.mark.parametrize("head", [["age", "size", "y"], ["age", "size", "kind", "y"]])
def test_all_cells_that_cannot_be_read_are_named_at_once(tmp_path, head):
    rows = [[i, i / 2, *["red"] * (len(head) - 3), "ab"[i % 2]] for i in range(30)]
    for line, column in ((3, 0), (3, 1), (9, 1), (11, 0), (12, 0), (13, 0)):
        rows[line - 2][column] = "?!"
    with pytest.raises(DataError) as caught:
        opened(write_csv(tmp_path / "a.csv", rows, head))
    assert str(caught.value).endswith(
        "a.csv, line 3: '?!' in column 'age' is no number; line 3: '?!' in column 'size' is no number; "
        "line 9: '?!' in column 'size' is no number; line 11: '?!' in column 'age' is no number; "
        "line 12: '?!' in column 'age' is no number; line 13: '?!' in column 'age' is no number"
    )


def test_the_most_frequent_categories_have_a_value_of_their_own(tmp_path):
    rows = [[f"c{i % 30}" if i < 100 else "c7", i % 2] for i in range(200)]
    _, x = opened(write_csv(tmp_path / "a.csv", rows, ["city", "y"]))
    assert x.shape[1] == 20 and x[7].sum() == 1 and {row.sum() for row in x} == {0, 1}


def test_categories_are_read_with_decimal_commas_quotes_and_tabs(tmp_path):
    text = 'size\tkind\ty\n1,5\t"big, red"\tno\n2,5\tsmall\tyes\n\t"big, red"\tno\n0,5\tsmall\tyes\n'
    _, x = opened(write(tmp_path / "a.tsv", text))
    assert x.tolist() == [[1.5, 0, 1, 0], [2.5, 0, 0, 1], [1.5, 1, 1, 0], [0.5, 0, 0, 1]]


def test_a_resumed_run_refuses_other_categories(tmp_path):
    def record(cities):
        path = write_csv(
            tmp_path / f"{cities}.csv", [[cities[i % 2], i, "ab"[i % 2]] for i in range(8)], ["c", "n", "y"]
        )
        splits, _ = opened(path)
        return {**Known.of(splits.train).to_json(), "fingerprint": fingerprint(splits.train)}

    assert compare(record("pq"), record("pq")) == ([], [])
    assert compare(record("pq"), record("pr"))[0] == ["the categories of the columns differ"]


def test_a_table_of_categories_alone_without_names_has_no_header(tmp_path):
    splits, x = opened(write_csv(tmp_path / "a.csv", [["pq"[i % 2], "rs"[i % 2], "ab"[i % 2]] for i in range(8)]))
    assert len(splits.train) == 8 and x.shape == (8, 4)


def test_no_folder_called_tilde_is_made_for_a_user_without_home(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 3_999_999_999)
    monkeypatch.setattr("ddl.data.tables.store.CACHED_FROM", 0)
    (tmp_path / "a.csv").write_text("a,y\n" + "1,0\n2,1\n" * 20)
    assert len(open_dataset("files", path="a.csv").train)
    assert not (tmp_path / "~").exists()
