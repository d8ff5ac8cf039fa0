"""A command of ddl compress that cannot be meant is refused in one line."""

from __future__ import annotations

import pytest

from ddl.compress.__main__ import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of --quantize int8 and --channels SHARE is needed"),
        (["--quantize", "int8", "--channels", "0.5"], "one of --quantize int8 and --channels SHARE is needed"),
        (["--channels", "1.5"], "--channels is 1.5: it must be above 0 and below 1"),
        (["--quantize", "int8", "--output", "small"], "--output is small: the name must end with .onnx"),
    ],
)
def test_a_wrong_command_is_refused_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["runs/none", *words])
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_folder_that_holds_no_run_is_named(tmp_path, capsys):
    assert main([str(tmp_path), "--channels", "0.5"]) == 2
    assert "is not a run's folder" in capsys.readouterr().err
