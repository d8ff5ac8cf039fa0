"""Each format's files, written here by hand, come out as NumPy would index them."""

import json

import numpy as np
import pytest

from ddl.data import open_dataset
from ddl.data.formats.detect import detect

from .filewriters import images, write, write_cifar, write_csv, write_idx

PICK = np.array([7, 0, 7, 3])


def opened(path, **kwargs):
    kwargs = {"validation": 0.0, "test": 0.0, **kwargs}
    return open_dataset("files", path=str(path), **kwargs)


def picked(source, pick=PICK):
    """What the source gives for ``pick`` while it holds these and a few others."""
    source.hold([range(0, 4), range(6, 8)])
    batch = source.gather(pick)
    for name, field in source.fields.items():
        assert batch[name].shape == (len(pick), *field.shape)
        assert batch[name].dtype == field.dtype
    with pytest.raises(IndexError):
        source.hold([range(0, 2)])
        source.gather(np.array([5]))
    return batch


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", "float16"])
def test_npy_with_targets_beside(tmp_path, dtype):
    x = np.random.default_rng(0).random((9, 4)).astype(dtype)
    y = np.arange(9) % 3
    np.save(tmp_path / "a.npy", x)
    np.save(tmp_path / "b.npy", y)
    source = opened(tmp_path / "a.npy", targets=str(tmp_path / "b.npy")).train
    batch = picked(source)
    assert np.array_equal(batch["x"], x[PICK].astype("float32"))
    assert np.array_equal(batch["y"], y[PICK])
    assert source.fields["y"].size == 3


def test_npy_in_fortran_order_and_without_targets(tmp_path):
    x = np.asfortranarray(np.random.default_rng(0).random((9, 4, 2)))
    np.save(tmp_path / "x.npy", x)
    batch = picked(opened(tmp_path / "x.npy", dtype="float64").train)
    assert np.array_equal(batch["x"], x[PICK])
    assert list(batch) == ["x"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_stored_and_compressed(tmp_path, save):
    x, y = images(9, 5, 6), np.linspace(-1, 1, 9)
    save(tmp_path / "d.npz", x=x, y=y)
    batch = picked(opened(tmp_path / "d.npz").train)
    assert np.array_equal(batch["x"], x[PICK][..., None].astype("float32"))
    assert np.array_equal(batch["y"], y[PICK][:, None].astype("float32"))


def test_npz_with_its_own_splits(tmp_path):
    np.savez(
        tmp_path / "mnist.npz",
        x_train=images(9, 2, 2),
        y_train=np.arange(9),
        x_test=images(4, 2, 2),
        y_test=np.arange(4),
    )
    splits = opened(tmp_path / "mnist.npz", test=0.3)
    assert (len(splits.train), splits.validation, len(splits.test)) == (9, None, 4)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_as_mnist_has_it(tmp_path, ending):
    x, y = images(9, 28, 28), (np.arange(9) % 10).astype(np.uint8)
    for role, cut in (("train", slice(0, 9)), ("t10k", slice(2, 6))):
        write_idx(tmp_path / f"{role}-images-idx3-ubyte{ending}", x[cut])
        write_idx(tmp_path / f"{role}-labels-idx1-ubyte{ending}", y[cut])
    splits = opened(tmp_path)
    batch = picked(splits.train)
    assert np.array_equal(batch["x"][..., 0], x[PICK])
    assert np.array_equal(batch["y"], y[PICK])
    splits.test.hold([range(4)])
    assert np.array_equal(splits.test.gather(np.arange(4))["y"], y[2:6])
    alone = opened(tmp_path / f"train-images-idx3-ubyte{ending}").train
    assert alone.fields["y"].size == 9  # the labels beside it are found


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "float64"])
def test_idx_of_other_types(tmp_path, dtype):
    x = (np.arange(36).reshape(9, 4) - 9).astype(dtype)
    write_idx(tmp_path / "x.idx", x)
    assert np.array_equal(picked(opened(tmp_path / "x.idx").train)["x"], x[PICK])


def test_cifar10_in_batches(tmp_path):
    x, y = images(9, 32, 32, 3), np.arange(9) % 10
    write_cifar(tmp_path / "data_batch_1.bin", x[:5], y[:5])
    write_cifar(tmp_path / "data_batch_2.bin", x[5:], y[5:])
    write_cifar(tmp_path / "test_batch.bin", x[:2], y[:2])
    write(tmp_path / "readme.html", "<html>")
    splits = opened(tmp_path)
    batch = picked(splits.train)
    assert np.array_equal(batch["x"], x[PICK])
    assert np.array_equal(batch["y"], y[PICK])
    assert len(splits.test) == 2
    assert splits.train.fields["y"].size == 10


def test_cifar100_takes_the_fine_label(tmp_path):
    x, fine = images(9, 32, 32, 3), np.arange(9) * 11
    write_cifar(tmp_path / "train.bin", x, fine // 5, fine)
    write_cifar(tmp_path / "test.bin", x[:3], fine[:3] // 5, fine[:3])
    splits = opened(tmp_path)
    batch = picked(splits.train)
    assert np.array_equal(batch["x"], x[PICK])
    assert np.array_equal(batch["y"], fine[PICK])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", [None, ["a", "b", "kind"]])
def test_csv_with_classes(tmp_path, delimiter, header):
    rows = [[i, -i / 4, "red" if i % 2 else "blue"] for i in range(9)]
    source = opened(write_csv(tmp_path / "d.csv", rows, header, delimiter)).train
    batch = picked(source)
    assert batch["x"].tolist() == [[i, -i / 4] for i in PICK]
    assert [source.names[label] for label in batch["y"]] == [rows[i][2] for i in PICK]


@pytest.mark.parametrize("targets", ["price", "0", "-3"])
def test_csv_target_by_name_or_number(tmp_path, targets):
    rows = [[i + 0.5, i, 2 * i] for i in range(9)]
    batch = picked(opened(write_csv(tmp_path / "d.csv", rows, ["price", "a", "b"]), targets=targets).train)
    assert batch["x"].tolist() == [[i, 2 * i] for i in PICK]
    assert batch["y"].tolist() == [[i + 0.5] for i in PICK]


def test_csv_with_quotes_several_targets_and_no_end_of_line(tmp_path):
    write(tmp_path / "d.csv", '\ufeff"x, of it","y,z",w\n' + "\n".join(f'{i},"{i}.5",{-i}' for i in range(9)))
    batch = picked(opened(tmp_path / "d.csv", targets="1,2").train)
    assert batch["x"].tolist() == [[i] for i in PICK]
    assert batch["y"].tolist() == [[i + 0.5, -i] for i in PICK]


def test_csv_without_targets_and_reshaped(tmp_path):
    rows = [[i, 1, 2, 3] for i in range(9)]
    source = opened(
        write_csv(tmp_path / "d.csv", rows), targets="none", options={"shape": [2, 2], "header": False}
    ).train
    assert picked(source)["x"].tolist() == [[[i, 1], [2, 3]] for i in PICK]


def test_many_whole_numbers_are_values_and_can_be_called_classes(tmp_path):
    rows = [[0.5, i] for i in range(100)]
    path = write_csv(tmp_path / "d.csv", rows)
    assert opened(path).train.fields["y"].shape == (1,)
    assert opened(path, options={"target_kind": "classes"}).train.fields["y"].size == 100


def test_a_long_csv_holds_any_of_its_rows(tmp_path):
    rows = [[i, i % 7] for i in range(1000)]
    source = opened(write_csv(tmp_path / "d.csv", rows, ["a", "b"])).train
    held = [range(3, 70), range(64, 130), range(511, 514), range(999, 1000)]
    source.hold(held)
    source.hold(held[1:])  # some of it is there already
    pick = np.array([999, 64, 512, 129])
    assert source.gather(pick)["x"][:, 0].tolist() == pick.tolist()
    assert np.array_equal(source.labels(), np.arange(1000) % 7)


def test_jsonl_and_csv_texts_give_tokens_by_frequency(tmp_path):
    texts = [("the cat sat", "animal"), ("the car", "thing")] * 5
    write(tmp_path / "d.jsonl", "".join(json.dumps({"text": t, "label": k}) + "\n" for t, k in texts))
    write_csv(tmp_path / "d.csv", [[f'"{t}"', k] for t, k in texts], ["body", "kind"])
    from_json = opened(tmp_path / "d.jsonl", options={"length": 4}).train
    from_csv = opened(tmp_path / "d.csv", options={"length": 4, "text": "body", "label": "kind"}).train
    for source in (from_json, from_csv):
        batch = picked(source, np.array([0, 1]))
        # the: 10 times, then by the alphabet car, cat, sat; 0 pads
        assert batch["x"].tolist() == [[2, 4, 5, 0], [2, 3, 0, 0]]
        assert batch["lengths"].tolist() == [3, 2]
        assert batch["y"].tolist() == [0, 1]
        assert source.names == ("animal", "thing")
        assert source.fields["x"].size == 6


def test_token_targets_are_the_window_shifted_by_one(tmp_path):
    tokens = (np.arange(101) * 7 % 90).astype("<u2")
    write(tmp_path / "train.bin", tokens.tobytes())
    write(tmp_path / "val.bin", tokens[:31].tobytes())
    splits = opened(tmp_path, options={"window": 10})
    batch = picked(splits.train)
    assert batch["x"].tolist() == [tokens[10 * i : 10 * i + 10].tolist() for i in PICK]
    assert batch["y"].tolist() == [tokens[10 * i + 1 : 10 * i + 11].tolist() for i in PICK]
    assert (len(splits.train), len(splits.validation)) == (10, 3)
    assert splits.train.fields["x"].size == tokens.max() + 1


def test_text_is_windows_of_bytes_over_all_files(tmp_path):
    write(tmp_path / "a.txt", "Grüße aus dem Süden, " * 3)
    write(tmp_path / "b.txt", b"\xff\xfe" * 40)
    whole = b"\0" + (tmp_path / "a.txt").read_bytes() + b"\0" + (tmp_path / "b.txt").read_bytes()
    source = opened(tmp_path, options={"window": 12}).train
    assert len(source) == (len(whole) - 1) // 12
    batch = picked(source)
    for row, i in enumerate(PICK):
        assert bytes(batch["x"][row].astype(np.uint8)) == whole[12 * i : 12 * i + 12]
        assert bytes(batch["y"][row].astype(np.uint8)) == whole[12 * i + 1 : 12 * i + 13]


def test_text_is_windows_of_characters(tmp_path, monkeypatch):
    monkeypatch.setattr("ddl.data.formats.corpus.PIECE_BYTES", 7)  # characters lie across pieces
    text = "Grüße, 世界! 😀 und mehr davon. " * 5
    write(tmp_path / "a.txt", text)
    source = opened(tmp_path / "a.txt", options={"window": 9, "unit": "characters"}).train
    batch = picked(source)
    whole = "\0" + text
    for row, i in enumerate(PICK):
        assert source.symbols.alphabet.decode(batch["x"][row]) == whole[9 * i : 9 * i + 9]
        assert source.symbols.alphabet.decode(batch["y"][row]) == whole[9 * i + 1 : 9 * i + 10]
    assert source.symbols.alphabet.encode("ü☃").tolist()[1] == 0


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("a.npy", b"\x93NUMPY", "npy"),
        ("unnamed", b"\x93NUMPY\x01", "npy"),
        ("unnamed", b"PK\x03\x04...", "npz"),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03....", "idx"),
        ("b.CSV", b"1,2", "csv"),
        ("c.jsonl", b"{}", "jsonl"),
        ("d.txt", b"abc", "text"),
        ("e.bin", b"\1\0\2\0", "tokens"),
        ("data_batch_3.bin", b"\1\0\2\0", "cifar10"),
    ],
)
def test_formats_are_detected_by_name_and_content(tmp_path, name, content, format):
    assert detect(write(tmp_path / name, content)) == format


def test_blank_lines_are_skipped_and_counted(tmp_path):
    lines = [f"{i},{i % 2}\n" for i in range(200)]
    lines[150:150] = ["\n", "  \n"]
    lines[3:3] = ["\r\n"]
    source = opened(write(tmp_path / "a.csv", "".join(lines) + "\n\n")).train
    assert source.notes[-1] == "a.csv: 3 blank lines skipped"
    pick = np.array([199, 2, 3, 150, 149])
    source.hold([range(200)])
    assert source.gather(pick)["x"][:, 0].tolist() == pick.tolist()
    texts = '{"text": "a b", "label": 0}\n\n{"text": "b", "label": 1}\n'
    from_json = opened(write(tmp_path / "b.jsonl", texts)).train
    assert from_json.notes == ("b.jsonl: 1 blank line skipped",) and from_json.labels().tolist() == [0, 1]


def test_each_file_of_a_folder_that_is_not_read_is_named_with_its_reason(tmp_path):
    write_csv(tmp_path / "a.csv", [[i, i % 2] for i in range(9)])
    write(tmp_path / "images.gz", "<html>not found</html>")
    write(tmp_path / "readme.txt", "about")
    notes = "\n".join(opened(tmp_path).train.notes)
    assert "images.gz, byte 0: its format is not recognised" in notes
    assert "readme.txt: text among files of another format" in notes
