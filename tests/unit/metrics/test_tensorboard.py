"""TensorBoard files hold the reported scalars; they are read back without our code."""

from __future__ import annotations

import io
import math
import struct
import sys

import pytest

from ddl.errors import ConfigError
from ddl.metrics import EpochDone, Finished, RankFailed, Recovered, StepDone
from ddl.metrics.tensorboard import TensorBoard

EVENTS = [
    StepDone(step=7, epoch=1, loss=0.5, lr=0.25, samples=256, seconds=0.125, metrics={"accuracy": 0.75}),
    StepDone(step=8, epoch=1, loss=math.nan, lr=0.25, samples=256, seconds=0.125),
    EpochDone(1, 8, {"loss": 0.5, "confusion": [[1]]}, {"accuracy": 0.5}),
    Finished("finished", {"test": {"accuracy": 0.875}}),
]
SCALARS = {
    (7, "step/loss"): 0.5,
    (7, "step/gradient_norm"): 0.0,
    (7, "step/accuracy"): 0.75,
    (7, "step/lr"): 0.25,
    (7, "step/seconds"): 0.125,
    (8, "step/gradient_norm"): 0.0,
    (8, "step/lr"): 0.25,
    (8, "step/seconds"): 0.125,
    (8, "train/loss"): 0.5,
    (8, "validation/accuracy"): 0.5,
    (8, "test/accuracy"): 0.875,
}


def read_scalars(path):
    """(step, tag) -> value of a TFRecord file: length, its checksum, an Event message, its checksum."""
    messages = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = messages.Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4
        found.update({(event.step, value.tag): value.simple_value for value in event.summary.value})
    return found


def test_reported_scalars_are_in_the_files(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = TensorBoard(tmp_path / "tensorboard")
    for event in EVENTS:
        sink.write(event)
    sink.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert read_scalars(path) == SCALARS


def read_events(path) -> dict[str, object]:
    """tag -> the last summary value of a TFRecord file."""
    messages = pytest.importorskip("tensorboardX.proto.event_pb2")
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = messages.Event.FromString(data[at + 12 : at + 12 + length])
        at += 12 + length + 4
        found.update({value.tag: value for value in event.summary.value})
    return found


def test_settings_failures_and_confusion_matrices_are_in_the_files(tmp_path):
    pytest.importorskip("tensorboardX")
    sink = TensorBoard(tmp_path / "tensorboard", {"optim.lr": 0.5, "optim.name": "adam"})
    sink.write(EpochDone(1, 8, {"accuracy": 0.5}, {"confusion": [[3, 1], [0, 4]]}))
    sink.write(RankFailed(9, 2, "here", "crash"))
    sink.write(Recovered(9, 1, [0, 1], 0.125, {"shrink": 0.1}))
    sink.write(Finished("finished", {"test": {"accuracy": 0.875}}))
    sink.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    found = read_events(path)
    assert b"lost rank 2 on here at step 9 (crash)" in found["failures/text_summary"].tensor.string_val[0]
    assert b"recovered in 125 ms" in found["recoveries/text_summary"].tensor.string_val[0]
    assert "running mean" in found["train/accuracy"].metadata.summary_description
    plugins = [value.metadata.plugin_data.content for value in found.values()]
    assert any(b"optim.lr" in content for content in plugins) and any(b"test/accuracy" in c for c in plugins)
    image = found["validation/confusion"].image
    pil = pytest.importorskip("PIL.Image")
    pixels = pil.open(io.BytesIO(image.encoded_image_string)).convert("RGB")
    assert pixels.size == (image.width, image.height) == (32, 32)
    shares = [[3 / 4, 1 / 4], [0, 1]]
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        red = pixels.getpixel((16 * column + 8, 16 * row + 8))[0]
        assert red == pytest.approx(255 - (255 - 37) * shares[row][column], abs=1)


def test_a_missing_package_is_reported_with_its_install_command(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r'tensorboard is true, but .* pip install "ddl-mpi\[tensorboard\]"'):
        TensorBoard(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def import_again(monkeypatch):
    """tensorboardX is imported again, as in another process."""
    pytest.importorskip("tensorboardX")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tensorboardX", "torch")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    "error", ["OSError('libcudart.so.12')", "ImportError('undefined symbol')", "RuntimeError('x')"]
)
def test_a_broken_installation_of_pytorch_does_no_harm(tmp_path, monkeypatch, import_again, error):
    (tmp_path / "torch.py").write_text(f"raise {error}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    sink = TensorBoard(tmp_path / "tensorboard")
    for event in EVENTS:
        sink.write(event)
    sink.close()
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert read_scalars(path) == SCALARS
    assert sys.modules.get("torch", "") is not None  # an import of PyTorch still reports its error


def test_a_package_that_is_itself_broken_is_named(tmp_path, monkeypatch, import_again):
    (tmp_path / "tensorboardX.py").write_text("raise OSError('libprotobuf.so')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"tensorboardX cannot be imported \(OSError: libprotobuf.so\)"):
        TensorBoard(tmp_path / "tensorboard")
