"""Datasets of PyTorch as data sources: samples by number, and draws that belong to a sample, not to a rank."""

from __future__ import annotations

import itertools
import os
import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import ddl
import ddl.torch
from ddl.comm.deaths import Death
from ddl.data import Loader, Order, as_known, open_dataset
from ddl.data.source import draw_for
from ddl.errors import ConfigError, DataError
from ddl.torch.readers import Readers


class Noisy(torch.utils.data.Dataset):
    """Sample i is i, and a random number of each generator."""

    def __len__(self):
        return 30

    def __getitem__(self, number):
        drawn = [torch.rand(()), random.random(), np.random.rand()]  # noqa: NPY002
        return torch.tensor([number, *drawn], dtype=torch.float64), number % 3


class Plain(Noisy):
    def __getitem__(self, number):
        return torch.full((2,), float(number)), number % 3


class Named(Noisy):
    def __getitem__(self, number):
        return {"pixels": np.full((2, 2), number), "label": number % 3, "id": str(number)}


def batches(source, shards, epoch=0):
    """sample number -> its row, over an epoch of these shards."""
    loader = Loader(source, Order(len(source), 6, 12, 7), shards, seed=7)
    rows = {}
    for step in range(loader.order.steps_per_epoch):
        batch, _ = loader.batch(epoch, step)
        rows |= {int(row[0]): row.copy() for row in batch["x"]}
    loader.close()
    return rows


def test_samples_are_collated_into_named_arrays():
    source = ddl.torch.Dataset(Plain())
    batch = source.gather(np.array([4, 9]))
    assert batch["x"].tolist() == [[4, 4], [9, 9]] and batch["y"].tolist() == [1, 0]
    assert source.fields["x"].shape == (2,) and source.fields["x"].dtype == np.float32 and len(source) == 30


def test_no_samples_are_arrays_of_no_rows():
    batch = ddl.torch.Dataset(Plain()).gather(np.zeros(0, np.int64))
    assert batch["x"].shape == (0, 2) and batch["x"].dtype == np.float32 and batch["y"].shape == (0,)


def test_the_keys_of_a_mapping_are_named_and_others_left_out():
    def collate(samples):
        return {"pixels": np.stack([one["pixels"] for one in samples]), "label": [one["label"] for one in samples]}

    source = ddl.torch.Dataset(Named(), collate, names={"pixels": "x", "label": "y"})
    assert source.gather(np.array([2]))["y"].tolist() == [2] and source.fields["x"].shape == (2, 2)


def test_draws_belong_to_the_sample_and_the_epoch_not_to_the_rank_or_the_moment():
    whole = batches(ddl.torch.Dataset(Noisy()), range(6))
    parts = [batches(ddl.torch.Dataset(Noisy()), shards) for shards in ([5, 0, 2], [1, 3, 4])]
    again = {**parts[0], **parts[1]}
    assert sorted(whole) == sorted(again) == list(range(30))
    assert all(np.array_equal(whole[number], again[number]) for number in whole)
    assert len({tuple(row[1:]) for row in whole.values()}) == 30
    other = batches(ddl.torch.Dataset(Noisy()), range(6), epoch=1)
    assert not any(np.array_equal(whole[number][1:], other[number][1:]) for number in whole)


class Counted(Plain):
    """Sample i is the process that reads it, and a random number."""

    def __getitem__(self, number):
        if number == 29:
            raise KeyError("29 is broken")
        return torch.tensor([number, os.getpid(), torch.rand(()), random.random()], dtype=torch.float64), 0


@pytest.fixture(scope="module")
def read_by_others():
    source = ddl.torch.Dataset(Counted(), workers=2)
    yield source
    source._readers.close()


def test_other_processes_read_the_same_samples_and_draws(read_by_others):
    numbers = np.array([3, 9, 1, 12, 7])
    here, there = ddl.torch.Dataset(Counted()), read_by_others
    with draw_for(7, 2):
        here, there = here.gather(numbers)["x"], there.gather(numbers)["x"]
    assert np.array_equal(np.delete(here, 1, 1), np.delete(there, 1, 1))
    assert len({os.getpid(), *there[:, 1]}) == 3 and not read_by_others.stays_on_thread


def test_a_sample_that_another_process_cannot_read_is_named(read_by_others):
    for source in (read_by_others, ddl.torch.Dataset(Counted()), ddl.torch.Dataset(Subset(Counted(), range(30)))):
        with pytest.raises(DataError, match=r"sample 29 of the dataset could not be read: KeyError: .* at test_torch"):
            source.gather(np.array([1, 29]))
    assert len(read_by_others.gather(np.array([1]))["x"]) == 1  # the others can still be read


def test_a_reader_that_has_ended_is_reported():
    readers = Readers(Plain(), 1)
    [process] = readers._processes
    process.kill()
    process.join()
    with pytest.raises(DataError, match=r"ended \(exit status -9\)"):
        readers.read([1], 0, 0)


def test_reading_does_not_change_the_generators_of_the_process():
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    wanted = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    batches(ddl.torch.Dataset(Noisy()), range(6))
    assert (torch.rand(()), random.random(), np.random.rand()) == wanted  # noqa: NPY002


def test_samples_are_read_on_the_thread_that_trains():
    loader = Loader(ddl.torch.Dataset(Plain()), Order(30, 6, 12, 7), range(6), prefetch=2)
    assert loader.prefetch == 0


class Unread(TensorDataset):
    """Only its first sample may be read."""

    def __getitem__(self, number):
        assert number == 0
        return super().__getitem__(number)


def test_labels_of_tensors_are_known_without_reading_the_samples():
    data = Unread(torch.arange(10.0)[:, None], torch.arange(10) % 4)
    assert ddl.torch.Dataset(data).labels().tolist() == [i % 4 for i in range(10)]
    assert ddl.torch.Dataset(Subset(data, [0, 3, 1])).labels().tolist() == [0, 3, 1]
    assert ddl.torch.Dataset(Plain()).labels().tolist() == [i % 3 for i in range(30)]


def test_class_numbers_reach_the_loss_as_they_are():
    data = TensorDataset(torch.zeros(40, 2), torch.tensor([-100, 7] * 20))
    run = ddl.Trainer(torch.nn.Linear(2, 8), data=data, global_batch=8)
    run.data.hold([range(4)])
    assert run.data.gather(np.arange(4))["y"].tolist() == [-100, 7, -100, 7]


class Empty(Plain):
    def __len__(self):
        return 0


class Texts(Plain):
    def __getitem__(self, number):
        return torch.zeros(2), "a text"


class Images(Plain):
    def __getitem__(self, number):
        return object(), 1


class Triples(Plain):
    def __getitem__(self, number):
        return 1, 2, 3


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (Empty(), "no samples"),
        (Texts(), "field 'y' of the samples"),
        (Triples(), "3 parts"),
        (Images(), "without a transform or collate_fn"),
        (Dataset(), "which Dataset has not"),
        (DataLoader(Plain()), "give its dataset"),
        (5, "__getitem__ or __iter__, and int neither"),
        ([{"image": 1.0, "label": 0}], "names={'image': 'x', ...: 'y'} of ddl.torch.Dataset"),
    ],
)
def test_a_dataset_that_gives_no_numbered_arrays_is_refused(dataset, words):
    with pytest.raises((ConfigError, DataError), match=words):
        ddl.torch.Dataset(dataset)


@pytest.mark.parametrize("name", ["torch:{}:Plain", "{}:Plain", "torch:{}:pairs"])
def test_a_job_names_a_dataset_class_or_a_function_that_makes_one(name, monkeypatch, tmp_path):
    text = "import torch\nfrom torch.utils.data import TensorDataset\n"
    text += "def Plain(): return TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 2)\n"
    text += "def pairs(): return [(float(i), i % 2) for i in range(40)]\n"
    (tmp_path / "named_sets.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    splits = open_dataset(name.format("named_sets"), validation=0.25, test=0)
    assert (len(splits.train), len(splits.validation)) == (30, 10)
    splits.train.hold([range(30)])
    assert set(splits.train.gather(np.arange(30))["y"].tolist()) == {0, 1}


def test_a_dataset_by_itself_is_a_source():
    assert isinstance(as_known(Plain()), ddl.torch.Dataset)
    assert as_known(5) == 5


class Stream(IterableDataset):
    """Numbers in an order that depends on the generators of the process. passes: how many samples each pass read."""

    def __init__(self, count):
        self.count, self.passes = count, []

    def __iter__(self):
        order = [int(number) for number in torch.randperm(self.count or 20)]
        self.passes.append(0)
        for number in order if self.count else itertools.cycle(order):
            self.passes[-1] += 1
            yield torch.tensor([float(number), random.random()]), number % 3


class Sized(Stream):
    def __len__(self):
        return self.count


@pytest.mark.parametrize(("dataset", "options"), [(Stream(20), {}), (Sized(20), {}), (Stream(0), {"samples": 20})])
def test_the_samples_of_a_stream_have_numbers_and_each_rank_keeps_its_own(dataset, options):
    torch.manual_seed(len(dataset.passes))
    before = torch.random.get_rng_state()
    source = ddl.torch.Dataset(dataset, **options)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(source) == 20 and dataset.passes[0] in (20, 1) and "read from its beginning" in source.notes[0]
    source.hold([range(2, 4), range(9, 11)])
    mine = source.gather(np.array([9, 2]))
    passes = len(dataset.passes)
    source.hold([range(2, 4)])
    assert len(dataset.passes) == passes  # nothing new to read
    torch.manual_seed(77)  # another rank, that another shard moves to
    other = ddl.torch.Dataset(type(dataset)(dataset.count), **options)
    other.hold([range(2, 10)])
    assert np.array_equal(other.gather(np.array([9, 2]))["x"], mine["x"])
    everything = ddl.torch.Dataset(dataset, **options)
    assert sorted(everything.labels().tolist()) == sorted(n % 3 for n in range(20))
    with pytest.raises(DataError, match="KeyError: 9"):
        source.gather(np.array([9]))


def test_a_stream_that_ends_before_its_length_is_reported():
    class Short(Stream):
        def __len__(self):
            return 30

    source = ddl.torch.Dataset(Short(20))
    with pytest.raises(DataError, match="gave 20 samples this time, and 30 were expected"):
        source.hold([range(30)])
    with pytest.raises(ConfigError, match="workers=0"):
        ddl.torch.Dataset(Stream(20), workers=1)
    with pytest.raises(ConfigError, match="Subset"):
        ddl.torch.Dataset(Plain(), samples=3)


def test_a_stream_trains_as_the_list_of_its_samples_does(trained_on):
    """On two ranks, one of which dies, so that its shards are read by the other."""
    stream = list(ddl.torch.Dataset(Stream(20))._stream._read())
    wanted = trained_on(lambda: stream)
    for found in trained_on(lambda: Stream(20), death=Death(1, 12)):
        torch.testing.assert_close(found.weight, wanted[0].weight, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found.weight, torch.ones(3, 2), atol=0.01)


@pytest.fixture
def trained_on(trained):
    def train(make, **threads):
        net = lambda: ddl.torch.Model(ones(), "cross_entropy")  # noqa: E731
        options = {
            "steps": 6,
            "batch": 10,
            "shards": 5,
            "dtype": "float32",
            "threads": threads,
            "source": lambda: ddl.torch.Dataset(make()),
        }
        return [model.module for model, _ in trained(2, net, None, None, **options)]

    return train


def ones():
    net = torch.nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.fill_(1), net.bias.fill_(0)
    return net


def test_a_dataset_of_hugging_face_is_read_by_number_or_as_a_stream():
    datasets = pytest.importorskip("datasets", reason="the datasets of Hugging Face are not installed")
    x = np.arange(24, dtype="float32").reshape(8, 3)
    table = datasets.Dataset.from_dict({"f": x.tolist(), "label": list(range(8)), "text": ["a"] * 8})
    names = {"f": "x", "label": "y"}
    for given in (table, table.with_format("torch"), table.to_iterable_dataset()):
        source = ddl.torch.Dataset(given, names=names)
        source.hold([range(8)])
        batch = source.gather(np.array([5, 1]))
        assert np.array_equal(batch["x"], x[[5, 1]]) and batch["y"].tolist() == [5, 1] and len(source) == 8
    assert isinstance(as_known(table.rename_columns(names).select_columns(["x", "y"])), ddl.torch.Dataset)
    with pytest.raises(DataError, match="'text' of the samples is of"):
        ddl.torch.Dataset(table)


def test_a_sample_of_more_parts_than_names_is_refused_with_the_way_to_name_them():
    x = torch.zeros(4, 2)
    with pytest.raises(ddl.errors.DataError, match=r'3 parts.*names=\("x", "x2", "y"\).*inputs='):
        ddl.torch.Dataset(torch.utils.data.TensorDataset(x, x, torch.zeros(4)))
