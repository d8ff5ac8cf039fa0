"""A rank holds its shards and no more: the memory of a process grows with its share of a file."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

MIB = 2**20
SHARDS = 8

SCRIPT = """
import json, sys
from ddl.data import Loader, Order, open_dataset

def resident():
    rss = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("Rss:"))
    return int(rss.split()[1]) * 1024

path, shares = sys.argv[1], json.loads(sys.argv[2])
train = open_dataset("files", path=path, validation=0.0, test=0.0, options=json.loads(sys.argv[3])).train
order = Order(len(train), 8, 64, seed=0)
before, grown = resident(), []
for share in shares:
    with Loader(train, order, range(share), prefetch=0) as loader:
        for step in range(order.steps_per_epoch):
            loader.batch(0, step)
    del loader
    grown.append(resident() - before)
print(json.dumps(grown))
"""


def growth(path, shares, **options):
    """Bytes that are resident beyond those at the start, after an epoch with so many of the shards."""
    command = [sys.executable, "-c", SCRIPT, str(path), json.dumps(shares), json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/smaps_rollup")


@needs_proc
@pytest.mark.parametrize("stored", [True, False])
def test_resident_memory_of_a_mapped_array_grows_with_the_share(tmp_path, stored):
    size = 64 * MIB
    x = np.ones((size // 4096, 1024), np.float32)
    path = tmp_path / ("x.npy" if stored else "x.npz")
    np.save(path, x) if stored else np.savez_compressed(path, x=x)
    one, four = growth(path, [1, 4])
    assert one < size / SHARDS + 12 * MIB
    assert size / SHARDS < four - one < 4 * size / SHARDS + 12 * MIB


def write_table(path, rows, columns):
    """A table of ones; its last column is the target."""
    names = [f"c{at}" for at in range(columns)]
    if path.name.endswith(".jsonl"):
        path.write_text((json.dumps(dict.fromkeys(names, 1)) + "\n") * rows)
    elif ".csv" in path.name:
        text = ",".join(names) + "\n" + (",".join("1" * columns) + "\n") * rows
        path.write_bytes(gzip.compress(text.encode(), 1) if path.suffix == ".gz" else text.encode())
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({name: np.ones(rows, np.float32) for name in names})
        if path.suffix == ".parquet":
            pq.write_table(table, path, row_group_size=2000)
        else:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=2000)


@needs_proc
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.jsonl", "x.parquet", "x.arrow"])
def test_resident_memory_of_a_table_grows_with_the_share_and_falls_when_shards_leave(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if name.endswith((".parquet", ".arrow")):
        pytest.importorskip("pyarrow")
    rows, columns = 16_000, 400
    write_table(tmp_path / name, rows, columns)
    parsed = rows * columns * 4
    one, eight, back = growth(tmp_path / name, [1, 8, 1])
    assert one < parsed / SHARDS + 14 * MIB
    assert eight - one > 0.6 * parsed * (SHARDS - 1) / SHARDS
    assert back < eight - 0.4 * parsed


@needs_proc
def test_resident_memory_of_images_grows_with_the_share_and_falls_when_shards_leave(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number in range(1024):
        folder = tmp_path / str(number % 2)
        folder.mkdir(exist_ok=True)
        image.new("RGB", (128, 128), (number % 256, 0, 0)).save(folder / f"{number}.jpg")
    decoded = 1024 * 128 * 128 * 3
    one, eight, back = growth(tmp_path, [1, 8, 1])
    assert one < decoded / SHARDS + 14 * MIB
    assert eight - one > 0.6 * decoded * (SHARDS - 1) / SHARDS
    assert back < eight - 0.4 * decoded
