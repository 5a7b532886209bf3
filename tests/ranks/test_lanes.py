"""Pieces of work side by side, each on one core: their order, their errors, and what is put back."""

import threading
import time

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from metasae.ranks.lanes import is_small, on_one_core, side_by_side


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_pieces(two_threads):
    def work(piece):
        time.sleep(0.02 if piece == 0 else 0)
        return piece * piece, threading.current_thread().name

    squares, names = zip(*side_by_side(work, range(6)), strict=True)
    assert squares == (0, 1, 4, 9, 16, 25) and len(set(names)) == 2 and all(name.startswith("lane") for name in names)
    assert side_by_side(work, ()) == []


def test_every_lane_has_one_core_and_the_caller_gets_its_own_back(two_threads):
    def blas():
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas()
    inside = side_by_side(lambda _: (torch.get_num_threads(), set(blas())), range(4))
    assert all(threads == 1 and pools <= {1} for threads, pools in inside)
    assert torch.get_num_threads() == 2 and blas() == before
    with pytest.raises(KeyError), on_one_core():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == 2


def test_a_lane_within_a_lane_works_in_turn(two_threads):
    def outer(_):
        return side_by_side(lambda _: threading.current_thread().name, range(3)), threading.current_thread().name

    for inner, name in side_by_side(outer, range(2)):
        assert set(inner) == {name}


def test_gradients_are_on_or_off_as_they_are_outside(two_threads):
    with torch.no_grad():
        assert side_by_side(lambda _: torch.is_grad_enabled(), range(2)) == [False, False]
    assert side_by_side(lambda _: torch.is_grad_enabled(), range(2)) == [True, True]


def test_the_first_error_is_raised_and_no_further_piece_begun(two_threads):
    begun = []

    def work(piece):
        begun.append(piece)
        if piece == 1:
            raise ValueError("piece 1")
        time.sleep(0.05)

    with pytest.raises(ValueError, match="piece 1"):
        side_by_side(work, range(50))
    assert len(begun) < 10 and torch.get_num_threads() == 2


def test_the_model_reads_the_same_in_lanes_as_alone(load, two_threads):
    """Rows are dealt out to lanes; hooks, which belong to the model, keep them apart, at one point and at two."""
    host = load("gpt2", "blocks.1.hook_resid_pre")
    hosts = [host, host.at("blocks.2.hook_resid_pre")]
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 300, (7, 20), generator=generator)
    mask = (torch.arange(20) < torch.tensor([20, 1, 5, 20, 13, 2, 20])[:, None]).long()
    from metasae.data.model.host import activations_at

    read = activations_at(hosts, ids, mask)
    torch.set_num_threads(1)
    alone = activations_at(hosts, ids, mask)
    own = mask.bool()
    assert all(torch.allclose(one[own], other[own], atol=1e-6) for one, other in zip(read, alone, strict=True))
    torch.set_num_threads(2)
    assert all(torch.equal(one, other) for one, other in zip(read, activations_at(hosts, ids, mask), strict=True))


def test_products_of_the_demo_are_small_and_those_of_the_paper_are_not():
    assert is_small(512 * 1536 * 384) and not is_small(4096 * 20480 * 1280)
