"""Batches hold the samples of the order, read ahead or not; a thread neither hides an error nor outlives its loader."""

import threading

import numpy as np
import pytest

from ddl.data import Arrays, Loader, Order


class FromFile(Arrays):
    """Pretends to read files, so that it is read ahead; counts what it gathers."""

    is_cheap = False
    fills_arrays = False

    def __init__(self, x, y=None, fail_at=None):
        super().__init__(x, y)
        self.gathered, self.fail_at = [], fail_at

    def gather(self, indices):
        self.gathered.append(list(indices))
        if self.fail_at is not None and self.fail_at in indices:
            raise RuntimeError(f"sample {self.fail_at} is bad")
        return super().gather(indices)


def numbers(source_type, samples=50, **kwargs):
    x = np.arange(samples, dtype=np.float32)
    return source_type(x[:, None] * [1.0, 2.0], (x % 3).astype(int), **kwargs)


@pytest.mark.parametrize("source_type", [Arrays, FromFile])
@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_batches_are_the_orders_samples(source_type, prefetch, parts):
    order, own = Order(50, 6, 16, seed=3), [0, 3, 4]
    with Loader(numbers(source_type), order, own, prefetch=prefetch, parts=parts) as loader:
        for epoch in range(3):
            for step in range(order.steps_per_epoch):
                for part in range(parts):
                    batch, segments = loader.batch(epoch, step, part)
                    want, want_segments = order.indices(epoch, step, own, part, parts)
                    assert np.array_equal(batch["x"], want[:, None] * [1.0, 2.0])
                    assert np.array_equal(batch["y"], want % 3)
                    assert segments == want_segments


@pytest.mark.parametrize("prefetch", [0, 2])
def test_any_step_may_be_asked_for(prefetch):
    order = Order(50, 5, 10, seed=0)
    with Loader(numbers(FromFile), order, range(5), prefetch=prefetch) as loader:
        for epoch, step in [(0, 0), (0, 1), (3, 2), (3, 3), (0, 4), (1, 0), (1, 0), (0, 0)]:
            batch, _ = loader.batch(epoch, step)
            assert list(batch["x"][:, 0]) == list(order.indices(epoch, step, range(5))[0])


@pytest.mark.parametrize("source_type", [Arrays, FromFile])
def test_a_batch_stays_valid_until_the_call_after_the_next(source_type):
    order = Order(60, 4, 12, seed=0)
    with Loader(numbers(source_type, 60), order, range(4), prefetch=2) as loader:
        before = None
        for step in range(5):
            batch, _ = loader.batch(0, step)
            if before is not None:
                assert list(before["x"][:, 0]) == list(order.indices(0, step - 1, range(4))[0])
            before = batch


def test_a_source_in_memory_needs_no_thread():
    loader = Loader(numbers(Arrays), Order(50, 5, 10, 0), range(5), prefetch=2)
    loader.batch(0, 0)
    assert not [t for t in threading.enumerate() if t.name == "ddl-prefetch"]
    assert loader.close()


def test_steps_are_read_ahead_and_the_thread_ends_with_the_loader():
    source, order = numbers(FromFile), Order(50, 5, 10, 0)
    loader = Loader(source, order, range(5), prefetch=2)
    for step in range(3):
        loader.batch(0, step)
    # The first is gathered by the caller while the thread is at the next.
    want = [sorted(order.indices(0, step, range(5))[0]) for step in range(3)]
    assert sorted(sorted(g) for g in source.gathered[:3]) == sorted(want)
    assert loader.close()
    assert not [t for t in threading.enumerate() if t.name == "ddl-prefetch"]
    with pytest.raises(ValueError, match="closed"):
        loader.batch(0, 3)


def test_an_error_in_the_thread_is_raised_for_the_batch_it_belongs_to():
    order = Order(50, 5, 10, 0)
    bad = int(order.indices(0, 2, range(5))[0][0])
    with Loader(numbers(FromFile, fail_at=bad), order, range(5), prefetch=3) as loader:
        loader.batch(0, 0)
        loader.batch(0, 1)
        for _ in range(2):  # asked again, it fails again
            with pytest.raises(RuntimeError, match=f"sample {bad} is bad"):
                loader.batch(0, 2)
        assert len(loader.batch(0, 3)[0]["x"]) == 10


def test_a_reader_that_is_stuck_does_not_hold_up_close(monkeypatch):
    monkeypatch.setattr("ddl.data.loader.CLOSE_DEADLINE_S", 0.05)
    stuck, release = threading.Event(), threading.Event()

    class Stuck(FromFile):
        def gather(self, indices):
            if threading.current_thread().name == "ddl-prefetch":
                stuck.set()
                release.wait(20)
            return super().gather(indices)

    loader = Loader(numbers(Stuck), Order(50, 5, 10, 0), range(5), prefetch=2)
    loader.batch(0, 0)
    assert stuck.wait(20)
    assert not loader.close()
    release.set()
    loader._thread.join(20)
    assert not loader._thread.is_alive()


def test_transforms_draw_by_shard_so_that_the_plan_does_not_matter():
    def jitter(batch, segments, generators):
        for segment, draw in zip(segments, generators, strict=True):
            batch["x"][segment] += draw.integers(0, 100, batch["x"][segment].shape)
        return batch

    order = Order(50, 6, 20, seed=0)
    whole = Loader(numbers(Arrays), order, range(6), transforms=[jitter], seed=5, prefetch=0)
    for own in ([0, 1, 2], [5], [3, 1]):
        with Loader(numbers(Arrays), order, own, transforms=[jitter], seed=5, prefetch=2) as loader:
            for step in range(order.steps_per_epoch):
                every, every_segments = whole.batch(1, step)
                batch, segments = loader.batch(1, step)
                direct, _ = loader.direct(1, step, 0, own)
                for shard, segment in zip(own, segments, strict=True):
                    assert np.array_equal(batch["x"][segment], every["x"][every_segments[shard]])
                assert np.array_equal(direct["x"], batch["x"])


def test_a_rank_without_shards_gets_empty_batches():
    batch, segments = Loader(numbers(Arrays), Order(50, 5, 10, 0), []).batch(0, 0)
    assert segments == []
    assert batch["x"].shape == (0, 2)


def test_an_order_for_another_source_is_refused():
    with pytest.raises(ValueError, match="51"):
        Loader(numbers(Arrays), Order(51, 5, 10, 0), [0])
