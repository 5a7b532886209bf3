"""GPUs that are known by name."""

import pytest

from metasae.doctor.cards import CARDS, asked_card
from metasae.errors import UserError


def test_a_card_is_found_in_any_case():
    assert asked_card("H200") is asked_card(" h200 ") is CARDS["h200"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("h20", "did you mean 'h200'"), ("a100-8", "did you mean 'a100-80'"), ("zzz", "known: a100-40, a100-80")],
)
def test_an_unknown_card_is_one_line_with_the_nearest(name, hint):
    with pytest.raises(UserError) as error:
        asked_card(name)
    assert hint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_rates_are_in_the_order_that_hardware_has(card):
    """Dense rates: a sparse one among them would break the ratio of bf16 to tf32, which is about two on all of them."""
    assert card.fp32 <= card.tf32 < card.bf16 and card.bf16 / card.tf32 == pytest.approx(2, rel=0.03)
    assert card.link < card.bandwidth < card.fp32
    assert card.flops(2) == card.bf16 and card.flops(4) == card.fp32
