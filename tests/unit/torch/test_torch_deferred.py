"""Sums of gradients during backward: asked for by hooks, done together at its end."""

from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from ddl.comm.threads import run_ranks
from ddl.torch.deferred import Deferrals, Sums, cut


class Asked:
    """A chain of scalars; the gradient of each asks for a sum, as a hook of DDP does."""

    def __init__(self, count=3):
        self.done, self.futures, self.moments = [], [], []
        self.deferrals = Deferrals(self.do)
        self.leaves = [torch.ones((), requires_grad=True) for _ in range(count)]
        for number, leaf in enumerate(self.leaves):
            leaf.register_hook(partial(self.hook, number))

    def hook(self, number, gradient):
        self.ask(number, gradient)

    def do(self, sums):
        self.done.append([one.operation for one in sums])

    def ask(self, number, gradient):
        made = self.deferrals.add([gradient], number)
        self.futures.append(made.get_future())
        self.moments.append(len(self.done))
        return made

    def value(self):
        total = torch.ones(())
        for leaf in self.leaves:
            total = total * leaf + leaf
        return total


def test_sums_of_a_backward_pass_are_done_together_when_it_ends():
    asked = Asked()
    for _ in range(2):
        asked.value().backward()
    assert [sorted(each) for each in asked.done] == [[0, 1, 2]] * 2
    assert asked.moments == [0, 0, 0, 1, 1, 1]
    assert all(future.done() for future in asked.futures)


@pytest.mark.parametrize("wait", [lambda made: made.wait(), lambda made: made.get_future().wait()])
def test_waiting_inside_backward_does_the_sums_asked_for_so_far(wait):
    asked = Asked(1)
    ask, seen = asked.ask, []

    def ask_and_wait(number, gradient):
        made = ask(number, gradient)
        wait(made)
        seen.append(list(asked.done))

    asked.ask = ask_and_wait
    asked.value().backward()
    assert seen == [[[0]]] and asked.done == [[0]]


def test_sums_of_a_backward_pass_that_failed_are_forgotten():
    asked = Asked()
    failing = asked.leaves[0] * 1
    failing.register_hook(lambda gradient: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (asked.leaves[2] * (failing + 1) + asked.leaves[1]).backward()
    asked.done.clear()
    asked.value().backward()
    assert [sorted(each) for each in asked.done] == [[0, 1, 2]]


def test_sums_of_a_pass_inside_another_are_done_when_the_inner_one_ends():
    asked = Asked(2)

    class Inner(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            with torch.enable_grad():
                (asked.leaves[1] * 3).backward()
            asked.moments.append("inner ended")
            return gradient * 2

    (Inner.apply(asked.leaves[0])).backward()
    assert asked.done == [[1], [0]]


def test_a_sum_that_is_asked_for_after_the_last_gradient_is_done_at_once():
    asked = Asked(1)
    seen = []

    def last():
        asked.ask("last", torch.ones(()))
        seen.append((list(asked.done), asked.futures[-1].done()))

    asked.hook = lambda number, gradient: None
    leaf = torch.ones((), requires_grad=True)
    leaf.register_hook(lambda gradient: torch.autograd.Variable._execution_engine.queue_callback(last))
    (leaf * 2).backward()
    assert seen == [([["last"]], True)]


def test_what_follows_a_sum_may_ask_for_another():
    asked = Asked(1)
    ask = asked.ask

    def ask_twice(number, gradient):
        ask(number, gradient).get_future().then(lambda future: ask("after", future.value()[0]))

    asked.ask = ask_twice
    asked.value().backward()
    assert asked.done == [[0], ["after"]]


@pytest.mark.parametrize("most", [1, 3, 4, 100])
def test_flat_tensors_are_cut_into_views_that_hold_so_many_elements_together(most):
    flats = [torch.arange(5.0), torch.arange(0.0), torch.arange(5.0, 12.0)]
    pieces = list(cut(flats, most))
    sizes = [sum(len(view) for view in piece) for piece in pieces]
    assert sizes[:-1] == [most] * (len(sizes) - 1) and 0 < sizes[-1] <= most
    assert torch.equal(torch.cat([view for piece in pieces for view in piece]), torch.arange(12.0))
    pieces[0][0][0] = 7
    assert flats[0][0] == 7


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tensors_of_several_pieces_are_summed_in_place(monkeypatch, size, dtype):
    monkeypatch.setattr("ddl.torch.deferred.PIECE_BYTES", 64)
    random = np.random.default_rng(0)
    parts = [[torch.from_numpy(random.integers(-9, 9, n)).to(dtype) for n in (70, 1, 13)] for _ in range(size)]
    expected = [sum(each) for each in zip(*parts)]

    def rank(group):
        sums, mine = Sums(group), [part.clone() for part in parts[group.rank]]
        sums.sum([torch.empty(0, dtype=dtype)])
        sums.sum(mine)
        sums.sum(mine[1:])  # another length
        sums.sum(mine)
        return mine

    for got in run_ranks(size, rank):
        for number, (one, total) in enumerate(zip(got, expected)):
            assert torch.equal(one, total * (size if number == 0 else size * size)), number
