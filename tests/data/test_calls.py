import inspect

import pytest
import torch

from metasae import UserError
from metasae.data.model.calls import arguments_of, attended, caches_in, steerable

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
SQUARE = (torch.ones(5, 5).tril() * MASK[:, None]).bool()[:, None]
FLOATS = torch.zeros(SQUARE.shape).masked_fill(~SQUARE, torch.finfo(torch.float32).min)


class Cache:
    def __init__(self, length):
        self.length = length

    def get_seq_length(self):
        return self.length


def test_masks_of_every_form():
    assert attended(MASK, 2, None).tolist() == [[True, True], [True, True]]
    assert attended(MASK, 5, None).tolist() == MASK.bool().tolist()
    for mask in (SQUARE, SQUARE.long(), FLOATS):
        assert torch.equal(attended(mask, 5, None), MASK.bool())
    fixed = torch.cat([SQUARE, torch.zeros(2, 1, 5, 3, dtype=torch.bool)], -1)[:, :, 1:3]
    assert attended(fixed, 2, Cache(1)).tolist() == [[False, True], [True, True]]
    # a cache of one token holds the newest
    assert attended(SQUARE[:, :, 1:2, 1:2], 1, Cache(1)).tolist() == [[False], [True]]
    with pytest.raises(UserError, match="another attention implementation"):
        attended(MASK[:, :, None], 5, None)


def test_a_mask_for_a_cache_that_the_call_does_not_carry_is_refused():
    with pytest.raises(UserError, match="5 columns for 2 tokens and the call carries no cache"):
        attended(SQUARE[:, :, 3:], 2, None)


def test_a_mask_for_each_kind_of_layer():
    ids = torch.full((2, 5), 7)
    for masks in (
        {"full_attention": None, "sliding_attention": SQUARE},
        {"sliding_attention": FLOATS, "full_attention": SQUARE},
    ):
        assert torch.equal(steerable({"input_ids": ids, "attention_mask": masks}, []), MASK.bool())
    assert steerable({"input_ids": ids, "attention_mask": {"full_attention": None}}, []).all()


@pytest.mark.parametrize("name", ["cache", "past_key_values", "of_a_later_version"])
def test_the_cache_is_known_by_what_it_can_do(name):
    call = {
        "input_ids": torch.full((2, 1), 7),
        "attention_mask": SQUARE[:, :, 3:4],
        "position_ids": torch.zeros(2, 1),
        name: Cache(3),
    }
    assert list(caches_in(call)) == [name]
    assert steerable(call, []).all()
    call["attention_mask"] = SQUARE[:, :, 1:2]
    call[name] = Cache(1)
    assert steerable(call, []).tolist() == [[False], [True]]


def test_arguments_are_named_whatever_the_signature_says():
    def forward(input_ids=None, attention_mask=None, **others):
        """Stands for a model's."""

    signature = inspect.signature(forward)
    assert arguments_of(signature, (1,), {"attention_mask": 2, "past_key_values": 3}) == {
        "input_ids": 1,
        "attention_mask": 2,
        "past_key_values": 3,
    }
    assert arguments_of(signature, (), {"input_ids": 1}) == {"input_ids": 1}
