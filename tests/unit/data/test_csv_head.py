"""A CSV file's header, delimiter and decimal mark are stated; a file that can be read in two ways is refused."""

import numpy as np
import pytest

from ddl.data import Known, data_lines, labels_of, open_dataset
from ddl.errors import DataError

from .filewriters import write

BODY = "".join(f"{i / 4},{i},{-i},{'ab'[i % 2]}\n" for i in range(6))
NUMBERS = "".join(f"{i / 4},{i},{-i},{i * i}\n" for i in range(6))


def opened(tmp_path, text, **options):
    path = write(tmp_path / "a.csv", text)
    splits = open_dataset("files", path=str(path), validation=0.0, test=0.0, options=options)
    splits.train.hold([range(len(splits.train))])
    return splits


def x_of(splits):
    return splits.train.gather(np.arange(len(splits.train)))["x"]


@pytest.mark.parametrize(
    ("text", "stated", "x"),
    [
        ("p,q,r,kind\n" + BODY, "header: yes; delimiter ','; decimal '.'", [0.25, 1, -1]),
        (BODY, "header: no; delimiter ','; decimal '.'", [0.25, 1, -1]),
        (BODY.replace(",", ";"), "header: no; delimiter ';'; decimal '.'", [0.25, 1, -1]),
        (BODY.replace(",", "\t"), r"header: no; delimiter '\t'; decimal '.'", [0.25, 1, -1]),
        (BODY.replace(",", ";").replace(".", ","), "header: no; delimiter ';'; decimal ','", [0.25, 1, -1]),
        (
            "p;q;r;kind\n" + BODY.replace(",", ";").replace(".", ","),
            "header: yes; delimiter ';'; decimal ','",
            [0.25, 1, -1],
        ),
        (
            ",p,q,y\n" + "".join(f"{i},{i / 4},{-i},{'ab'[i % 2]}\n" for i in range(6)),
            "column '' only numbers the rows: left out (data.columns)",
            [0.25, -1],
        ),
        (",p,q,y\n" + "".join(f"{i * i},{i / 4},{-i},a{i % 2}\n" for i in range(6)), "column ''", [0.25, -1]),
        (",p,q,y\n" + "".join(f"car{i},{i / 4},{-i},a{i % 2}\n" for i in range(6)), "column ''", [0.25, -1]),
        ("Unnamed: 0,p,y\n" + "".join(f"{9 - i},{i / 4},a{i % 2}\n" for i in range(6)), "column 'Unnamed: 0'", [0.25]),
        ("p,ID,y\n" + "".join(f"{i / 4},{i + 1},a{i % 2}\n" for i in range(6)), "column 'ID' only numbers", [0.25]),
        ("p,id,y\n" + "".join(f"{i / 4},{i // 2},a{i % 2}\n" for i in range(6)), "header: yes", [0.25, 0]),
        ("p,id,y\n" + "".join(f"{i / 4},{i / 8},a{i % 2}\n" for i in range(6)), "header: yes", [0.25, 0.125]),
        ("id,y\n" + "".join(f"{i},a{i % 2}\n" for i in range(6)), "header: yes", [1]),
        ("".join(f"{i},{i / 4},a{i % 2}\n" for i in range(12)), "column '0' only numbers the rows", [0.25]),
        ("".join(f"{i % 11},{i / 4},a{i % 2}\n" for i in range(12)), "header: no", [1, 0.25]),
    ],
)
def test_every_decision_about_the_header_is_reported(tmp_path, text, stated, x):
    splits = opened(tmp_path, text)
    assert stated in "\n".join(data_lines(Known.of(splits.train).to_json()))
    assert x_of(splits)[1].tolist() == x


@pytest.mark.parametrize(
    "text",
    [
        "0,1,2,label\n" + BODY,
        "0,1,2,3\n" + NUMBERS,
        '"1","2","3","y"\n' + NUMBERS,
        '"7","8","9","10"\n' + NUMBERS,
        "1,2,3,y\n" + NUMBERS,
        "0.5,p,2,a\n" + BODY,
        "2019,2020,2021,label\n" + BODY,
        "2019,2020,label\n" + "".join(f"{i},{-i},{'ab'[i % 2]}\n" for i in range(6)),
        "2019,2020,2021,2022\n" + NUMBERS,
        "10,20,30,40\n" + NUMBERS,
        "1910,1950,label\n" + "".join(f"{i},{-i},{'ab'[i % 2]}\n" for i in range(6)),
        "1910,1950\n" + "".join(f"{i},{i % 2}\n" for i in range(6)),
    ],
)
def test_a_first_line_that_can_be_names_or_a_sample_is_refused_with_both_readings(tmp_path, text):
    with pytest.raises(DataError, match=r"can be the names of the columns .* or a sample: set data.options.header"):
        opened(tmp_path, text)


def test_the_setting_decides_an_ambiguous_first_line(tmp_path):
    named = opened(tmp_path, "0,1,2,label\n" + BODY, header=True)
    assert len(named.train) == 6 and labels_of(named.train).tolist() == [0, 1] * 3
    assert len(opened(tmp_path, "0,1,2,3\n" + NUMBERS, header=False).train) == 7


def test_a_first_sample_whose_class_recurs_is_not_a_header(tmp_path):
    assert len(opened(tmp_path, "0,1,2,a\n" + BODY).train) == 7
    assert len(opened(tmp_path, "2019,2020,2021,a\n" + BODY).train) == 7


def test_samples_that_are_series_themselves_have_no_header(tmp_path):
    assert len(opened(tmp_path, "".join(f"{i},{i + 1},{i + 2},{i + 3}\n" for i in range(3, 9))).train) == 6


def test_a_row_number_can_be_asked_for(tmp_path):
    text = "id,p,y\n" + "".join(f"{i},{i / 4},{'ab'[i % 2]}\n" for i in range(6))
    splits = opened(tmp_path, text, features=["id", "p"])
    assert x_of(splits)[1].tolist() == [1, 0.25] and "left out" not in str(splits.train.notes)


def test_a_target_that_two_columns_are_called_is_refused(tmp_path):
    path = write(tmp_path / "a.csv", "y,p,y\n" + "".join(f"{i},{-i},{i % 2}\n" for i in range(6)))
    with pytest.raises(DataError, match="2 columns are called 'y'"):
        open_dataset("files", path=str(path), targets="y")


def test_thousands_set_apart_are_not_taken_for_decimals(tmp_path):
    text = "p;y\n" + "".join(f"{i + 1},000;{'ab'[i % 2]}\n" for i in range(4))
    with pytest.raises(DataError, match=r"decimal comma or with thousands set apart.*data.options.decimal"):
        opened(tmp_path, text)
    assert x_of(opened(tmp_path, text, decimal=","))[:, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("cell", ["1,5e-07", "-1,5E+3", ",5"])
def test_decimal_commas_are_understood_in_every_form_of_a_number(tmp_path, cell):
    splits = opened(tmp_path, "p;y\n" + f"1,25;{cell}\n2,5;0,25\n")
    assert splits.train.gather(np.arange(1))["y"].item() == pytest.approx(float(cell.replace(",", ".")))


def test_targets_with_a_decimal_comma_are_values(tmp_path):
    splits = opened(tmp_path, "p;y\n" + "".join(f"{i};{i},5\n" for i in range(6)))
    assert splits.train.gather(np.arange(6))["y"][:, 0].tolist() == [i + 0.5 for i in range(6)]
