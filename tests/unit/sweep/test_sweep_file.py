"""A sweep's file and settings are refused in one line before any trial starts."""

import pytest

from ddl.errors import ConfigError
from ddl.sweep import Sweep
from ddl.sweep.__main__ import main, read


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def written(tmp_path, text):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return path


def test_a_file_gives_space_job_and_options(tmp_path):
    (tmp_path / "samples.csv").write_text("a,b\n1,2\n")
    sweep = read(
        written(
            tmp_path,
            """
            [sweep]
            trials = 3
            metric = "accuracy"
            [space]
            optim.lr = {log = [1e-4, 1e-1]}
            "train.global_batch" = [32, 64]
            model.options.hidden = [[8], [8, 8]]
            [job]
            data.path = "samples.csv"
            model.name = "mlp"
            """,
        ),
        ["--train.epochs=2"],
    )
    assert list(sweep.space) == ["optim.lr", "train.global_batch", "model.options.hidden"]
    assert list(sweep.job) == [f"--data.path={tmp_path}/samples.csv", "--model.name=mlp", "--train.epochs=2"]
    assert (sweep.trials, sweep.is_minimised, str(sweep.folder)) == (3, False, "sweeps/sweep")


@pytest.mark.parametrize(
    "text, words",
    [
        ("[sweep]\ntrails = 3", "did you mean 'trials'"),
        ("[sweep]\ntrials = 'many'", "a whole number"),
        ("[sweep]\nfolder = ''\n[space]\noptim.lr = [1]", "folder = '' must name a folder"),
        ("[sweeps]\ntrials = 3", r"has \[sweeps\]"),
        ("[sweep]\nhalving = 1\nmode = 'up'\n[space]\noptim.lr = [1]", "halving = 1 .*; mode = 'up'"),
        ("[space]\noptim.rl = [0.1]", r"trial 0 \(optim.rl = 0.1\): .*no setting"),
        ("[space]\noptim.lr = [0.1]\n[job]\ndata.validation = 0.0", "data.validation is 0"),
        ("[sweep]\nhalving = 3\n[space]\noptim.lr = [0.1]\n[job]\ntrain.steps = 9", "by epochs"),
        ("[sweep]\nparallel = 9999\n[space]\noptim.lr = [0.1]", "more than the"),
        ("job = 'absent.toml'\n[space]\noptim.lr = [0.1]", "there is no job file"),
        ("[sweep", "is not TOML"),
        ("sweep = 3", r"must be a table, \[sweep\]"),
        ("space = 'optim.lr'", r"must be a table, \[space\]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, text, words):
    path = written(tmp_path, text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not (tmp_path / "sweeps" / "sweep" / "trials" / "000").exists()
    with pytest.raises(ConfigError, match=words):
        read(path).run()


def test_a_folder_keeps_its_sweep(tmp_path):
    space = {"optim.lr": {"log": [1e-4, 1e-1]}}
    first = Sweep(["--model.name=mlp"], space, tmp_path / "s", trials=2, parallel=1)
    first.end()  # before it starts: no trial runs
    assert [one.status for one in first.run()] == ["waiting", "waiting"]
    assert (tmp_path / "s" / "sweep.csv").read_text().splitlines()[0] == "trial,status,loss,epoch,optim.lr,folder"
    with pytest.raises(ConfigError, match="holds another sweep: seed and trials differ"):
        Sweep(["--model.name=mlp"], space, tmp_path / "s", trials=2, seed=1).run()
