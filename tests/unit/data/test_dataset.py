"""Parts of a dataset: disjoint, together everything, with the share of each class; held-out samples teach nothing."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddl.data import Arrays, Known, Splits, labels_of, make_transforms, open_dataset, sequential_split, stratified_split
from ddl.data.generated import library
from ddl.data.source import Field
from ddl.errors import ConfigError, DataError

from .filewriters import write, write_csv


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.floats(0, 0.5), st.floats(0, 0.49), st.integers(0, 5))
def test_a_stratified_split_keeps_the_share_of_each_class(labels, first, second, seed):
    labels = np.array(labels)
    fractions = [1 - first - second, first, second]
    parts = stratified_split(labels, fractions, seed)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for part, fraction in zip(parts, fractions, strict=True):
        assert (np.diff(part) > 0).all()
        for label in np.unique(labels):
            count = (labels == label).sum()
            assert abs((labels[part] == label).sum() - fraction * count) <= 1.0 + 1e-9


def test_a_split_is_a_matter_of_its_seed():
    labels = np.zeros(100, int)
    one, again, other = (stratified_split(labels, [0.5, 0.5], seed)[0].tolist() for seed in (1, 1, 2))
    assert one == again != other
    with pytest.raises(ConfigError):
        stratified_split(labels, [0.5, 0.6], 0)


def test_the_digits_split_as_settings_say():
    splits = open_dataset("digits", validation=0.1, test=0.2, seed=3)
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert sum(sizes) == 1797
    assert sizes[2] == pytest.approx(359, abs=3)
    shares = [np.bincount(labels_of(part)) / len(part) for part in (splits.train, splits.test)]
    assert np.abs(shares[0] - shares[1]).max() < 0.01
    assert splits.train.fields["x"].dtype == np.float32
    plain = open_dataset("digits", validation=0.1, test=0.2, seed=3, stratify=False)
    assert not np.array_equal(plain.test.indices, splits.test.indices)


def test_parts_of_nothing_are_none():
    splits = open_dataset("digits", validation=0.0, test=0.0)
    assert (len(splits.train), splits.validation, splits.test) == (1797, None, None)


def test_oversampling_repeats_rare_classes_of_the_training_part_only(tmp_path):
    path = write_csv(tmp_path / "d.csv", [[i, "rare" if i % 10 == 0 else "common"] for i in range(100)])
    splits = open_dataset("files", path=str(path), validation=0.0, test=0.2, oversample=1.0)
    assert np.bincount(labels_of(splits.train)).tolist() == [72, 72]
    assert np.bincount(labels_of(splits.test)).tolist() == [18, 2]


def test_held_out_files_are_numbered_as_the_training_file(tmp_path):
    train = write_csv(tmp_path / "a.csv", [[i, "xyz"[i % 3]] for i in range(9)])
    test = write_csv(tmp_path / "b.csv", [[1, "z"], [2, "z"]])
    splits = open_dataset("files", path=str(train), validation=0.0, test=str(test))
    splits.test.hold([range(2)])
    assert splits.test.gather(np.arange(2))["y"].tolist() == [2, 2]
    assert splits.test.fields["y"].size == 3


def test_several_training_files_share_one_class_numbering(tmp_path):
    for name, kinds in (("train_1", "xyz"), ("train_2", "zz"), ("test_1", "y"), ("test_2", "z")):
        write_csv(tmp_path / f"{name}.csv", [[i, kind] for i, kind in enumerate(kinds)])
    splits = open_dataset("files", path=str(tmp_path), validation=0.0, test=0.0)
    assert labels_of(splits.train).tolist() == [0, 1, 2, 2, 2]
    assert labels_of(splits.test).tolist() == [1, 2]


def test_a_text_is_split_by_its_end(tmp_path):
    path = write(tmp_path / "a.txt", bytes(range(1, 101)))
    splits = open_dataset("files", path=str(path), validation=0.1, test=0.2, options={"window": 10})
    splits.test.hold([range(len(splits.test))])
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (7, 1, 2)
    assert splits.test.gather(np.arange(2))["y"].ravel().tolist() == list(range(81, 101))
    assert [len(part) for part in sequential_split(10, [0.7, 0.1, 0.2])] == [7, 1, 2]


def test_a_vocabulary_is_learned_only_from_the_training_part(tmp_path):
    lines = "".join(f'{{"text": "word{chr(97 + i)} common", "label": {i % 2}}}\n' for i in range(20))
    splits = open_dataset("files", path=str(write(tmp_path / "a.jsonl", lines)), validation=0.0, test=0.5)
    for part, unknown in ((splits.train, 0), (splits.test, len(splits.test))):
        part.hold([range(len(part))])
        assert (part.gather(np.arange(len(part)))["x"] == 1).sum() == unknown
    assert splits.train.fields["x"].size == 2 + 1 + len(splits.train)


def test_hashed_tokens_need_no_training_part(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a b", "label": 0}\n{"text": "b", "label": 1}\n')
    options = {"hashed": True, "vocabulary": 50, "length": 3}
    train = open_dataset("files", path=str(path), validation=0.0, test=0.0, options=options).train
    train.hold([range(2)])
    x = train.gather(np.arange(2))["x"]
    assert x[0, 1] == x[1, 0] > 1
    assert train.fields["x"].size == 50


def line_source(**options):
    return Arrays(np.arange(10.0), **options)


def whole_dataset():
    return Splits(line_source())


@pytest.mark.parametrize(("name", "count"), [("line_source", 8), ("whole_dataset", 10)])
def test_a_users_own_source_is_named_by_module(name, count, monkeypatch):
    import sys
    import types

    module = types.ModuleType("users_own")
    setattr(module, name, globals()[name])
    monkeypatch.setitem(sys.modules, "users_own", module)
    assert len(open_dataset(f"users_own:{name}", validation=0.0, test=0.2).train) == count


def test_a_line_is_generated_with_its_slope():
    train = open_dataset("linear", validation=0.0, test=0.0, options={"weights": [3.0, -1.0], "noise": 0.0}).train
    batch = train.gather(np.arange(5))
    assert np.allclose(batch["y"][:, 0], batch["x"] @ [3, -1] + 2, atol=1e-5)


def test_lines_of_the_standard_library_are_labelled_by_their_package():
    options = {"packages": ["json", "logging"], "lines_per_package": 100, "length": 8}
    splits = open_dataset("stdlib_lines", options=options)
    lines = splits.train.source.texts(np.arange(len(splits.train.source)))
    assert len(lines) == len(set(lines)) == 200
    assert lines[0] in (library() / "json" / "__init__.py").read_text()
    assert splits.names == ("json", "logging")


def test_the_librarys_text_is_held_out_by_files():
    splits = open_dataset("stdlib_text", options={"window": 32, "limit_mib": 1.0})
    files = [set(part.symbols.files.paths) for part in (splits.train, splits.validation, splits.test)]
    assert all(files)
    assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("blur", "data.augment = 'blur' is unknown"),
        ("shift:two", "'two' must be numbers, with commas between"),
        ("shift:8", "pixels = 8 must be below the 8 of the images' shorter side"),
        ({"name": "flip", "chance": 1}, "chance"),
        ({"probability": 1}, "needs a name"),
        ("shift:1,2,3", "too many"),
    ],
)
def test_a_wrong_augmentation_is_named(spec, words):
    with pytest.raises(ConfigError, match=words):
        make_transforms([spec], {"x": Field((9, 8, 1), np.dtype("float32"))})


def test_targets_that_cannot_be_classes_are_refused(tmp_path):
    np.savez(tmp_path / "prices.npz", x=np.zeros((60, 4)), y=np.arange(60) * 20_000)
    with pytest.raises(DataError, match=r"prices\.npz: targets up to 1180000 would be 1180001 classes of 60 samples"):
        open_dataset("files", path=str(tmp_path / "prices.npz"))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_fraction_of_no_sample_is_refused(part):
    with pytest.raises(ConfigError, match=rf"data\.{part} = 0.0001 of 1797 samples is none"):
        open_dataset("digits", **{part: 1e-4})


def test_the_description_of_a_users_source_is_json():
    class Counted:
        fields = {"x": Field((np.int64(3),), np.dtype("float32")), "y": Field((), np.int64, np.int64(4))}  # noqa: RUF012

    known = Known.of(Counted(), names=np.array(["a", "b"]))
    again = Known.from_json(json.loads(json.dumps(known.to_json())))
    assert again.fields == {"x": Field((3,), np.dtype("float32")), "y": Field((), np.dtype("int64"), 4)}
    assert again.names == ("a", "b") and again.symbols is None


def test_tiny_classes_do_not_all_round_the_same_way():
    labels = np.repeat(np.arange(400), 3)
    sizes = [len(part) for part in stratified_split(labels, [0.7, 0.1, 0.2], 0)]
    assert sizes == [840, 120, 240]
