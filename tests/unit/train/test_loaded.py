"""``ddl.load(...)`` of a run on a table: cells in memory mean what they mean in the files of training."""

import numpy as np
import pytest

import ddl
from ddl import predict
from ddl.errors import UserError
from ddl.train.__main__ import main as train

QUIET = ("--metrics.console_every_s=0", "--fault.tolerance=off", "--data.prefetch=0", "--train.steps=2")


def trained(path, *words):
    assert train([*QUIET, f"--data.path={path}", f"--run.dir={path.parent / 'run'}", *words]) == 0
    return ddl.load(path.parent / "run")


def cities(path, delimiter=","):
    """A table in the encoding of Windows, in which the spend depends on city, code and flag."""
    rows = [["city", "code", "flag", "spend"]]
    for i in range(120):
        city, code, flag = ["Zürich", "Genève", "Bern"][i % 3], 8001 + i % 4, ["true", "false"][i % 2]
        rows.append([city, str(code), flag, str(i % 12 + 0.5)])
    path.write_text("".join(delimiter.join(row) + "\n" for row in rows), "cp1252")
    return path


@pytest.fixture(scope="module")
def towns(tmp_path_factory):
    """A run on the table of cities, and the table."""
    path = cities(tmp_path_factory.mktemp("towns") / "cities.csv")
    return trained(path, *CITIES), path


CITIES = ("--data.encoding=cp1252", '--data.types={code = "category"}', "--model.name=linear", "--optim.lr=0.5")


def test_columns_in_memory_are_not_in_the_encoding_of_the_files(towns):
    model, _ = towns
    cells = {"code": [8001], "flag": ["true"]}
    assert model.predict({"city": ["Zürich"], **cells}) != model.predict({"city": ["elsewhere"], **cells})


def test_true_and_whole_floats_are_the_categories_that_files_spell_otherwise(towns):
    model, _ = towns
    written = model.predict({"city": ["Bern"] * 2, "code": ["8002", "8003"], "flag": ["true", "false"]})
    rows = [{"city": "Bern", "code": "8002", "flag": "true"}, {"city": "Bern", "code": "8003", "flag": "false"}]
    assert (model.predict(rows) == written).all()
    assert (model.predict({"city": ["Bern"] * 2, "code": [8002.0, 8003.0], "flag": [True, False]}) == written).all()


def test_a_missing_cell_of_the_only_column_is_a_row(tmp_path):
    path = tmp_path / "one.csv"
    path.write_text("a,y\n" + "".join(f"{i if i % 5 else ''},{i + 0.5}\n" for i in range(100)))
    model = trained(path)
    answers = model.predict({"a": [1.0, None, float("nan"), "", 2.0]})
    assert len(answers) == 5 and answers[1] == answers[2] == answers[3] != answers[0]


def test_columns_called_by_numbers_are_names(tmp_path):
    path = tmp_path / "years.csv"
    path.write_text("2019,2020,2021,y\n" + "".join(f"{i},{i + 1},{i * i},{i + 0.5}\n" for i in range(100)))
    model = trained(path, "--data.options={header = true}")
    assert model.predict({"2019": [1], "2020": [2], "2021": [1]}).shape == (1, 1)


@pytest.mark.parametrize("age", [3, "ab", np.array(3)])
def test_one_value_beside_columns_is_refused_by_its_name(towns, age):
    model, _ = towns
    with pytest.raises(UserError, match="'code'"):
        model.predict({"city": ["Bern", "Bern"], "code": age, "flag": ["true", "true"]})
    with pytest.raises(UserError):
        model.predict(np.array(3.0))


def test_dates_of_numpy_are_dates(tmp_path):
    path = tmp_path / "days.csv"
    path.write_text("day,y\n" + "".join(f"2024-01-{1 + i % 28:02},{i % 28 + 0.5}\n" for i in range(100)))
    model, days = trained(path), ["2024-01-03", "2024-01-20"]
    for unit in ("D", "s", "ns"):
        assert (model.predict({"day": np.array(days, f"datetime64[{unit}]")}) == model.predict({"day": days})).all()


def test_identifiers_are_read_as_the_job_reads_its_files(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = cities(tmp_path / "cities.csv", "~")
    trained(path, *CITIES, '--data.options={delimiter = "~"}')
    capsys.readouterr()
    assert predict.main(["run", "--input", path.name, "--id", "city"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("Zürich,")


def test_identifiers_are_not_replaced_by_answers_of_the_same_name(towns, tmp_path, capsys):
    model, path = towns
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(path.read_text("cp1252").replace("spend", "prediction"), "cp1252")
    capsys.readouterr()
    assert predict.main([str(model.trained.folder), "--input", str(renamed), "--id", "prediction"]) == 2
    assert "'prediction'" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["file/answers.csv", "nowhere/answers.csv", "."])
def test_predictions_that_cannot_be_written_are_one_line(towns, tmp_path, capsys, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    model, path = towns
    (tmp_path / "file").touch()
    capsys.readouterr()
    assert predict.main([str(model.trained.folder), "--input", str(path), "--output", output, "--format", "csv"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError):
        model.export(f"file/{output}.safetensors")


def test_images_of_pillow_and_several_paths_are_answered_as_their_files(tmp_path, rng):
    pillow = pytest.importorskip("PIL.Image")
    for place in range(24):
        path = tmp_path / "images" / ["dark", "light"][place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100, (9, 8, 3)) + 100 * (place % 2)
        pillow.fromarray(pixels.astype(np.uint8)).resize((16, 12)).save(path)
    model = trained(tmp_path / "images", "--data.image_size=8")
    paths = sorted((tmp_path / "images").rglob("*.png"))
    wanted = model.outputs(tmp_path / "images")
    np.testing.assert_allclose(model.outputs(paths), wanted, rtol=1e-5)
    np.testing.assert_allclose(model.outputs([pillow.open(path) for path in paths]), wanted, rtol=1e-5)
    assert np.allclose(model.outputs(pillow.open(paths[0])), wanted[0], rtol=1e-5)
