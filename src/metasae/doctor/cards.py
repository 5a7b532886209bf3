"""GPUs by their makers' datasheets, for plans for machines that are not at hand.

Sources: NVIDIA's datasheets of A100 (SXM), H100 (SXM), H200 (SXM), HGX B200 and L40S, and the Ada architecture
whitepaper for the RTX 4090. Products per second are for dense matrices; the datasheets print twice as much for sparse
ones. Memory is in decimal bytes, a few percent less than the cards have. A link rate is for one direction: half of the
NVLink sum in the datasheets, or PCIe 4.0 x16 without NVLink. None of it was measured here.
"""

from dataclasses import dataclass

from metasae.errors import UserError, nearest


@dataclass(frozen=True)
class Card:
    """A GPU. bf16, tf32, fp32: dense FLOP/s. bandwidth: bytes/s of the memory. link: bytes/s sent in one direction.
    memory: bytes.

    together: number of GPUs that the link joins in one machine; more GPUs need a slower network.
    """

    name: str
    bf16: float
    tf32: float
    fp32: float
    bandwidth: float
    memory: float
    link: float
    together: int = 8

    def flops(self, width: int) -> float:
        """FLOP/s of matrix products with `width` bytes per number. Products in fp32 do not use tf32, which is only
        listed.
        """
        return self.bf16 if width == 2 else self.fp32


# The share of the datasheet's rates that the slowest time of a plan assumes.
EFFICIENCY = 0.5

CARDS = {
    card.name: card
    for card in (
        Card("a100-40", 312e12, 156e12, 19.5e12, 1.555e12, 40e9, 300e9),
        Card("a100-80", 312e12, 156e12, 19.5e12, 2.039e12, 80e9, 300e9),
        Card("h100", 989e12, 494e12, 67e12, 3.35e12, 80e9, 450e9),
        Card("h200", 989e12, 494e12, 67e12, 4.8e12, 141e9, 450e9),
        Card("b200", 2250e12, 1100e12, 75e12, 8.0e12, 180e9, 900e9),
        Card("l40s", 362e12, 183e12, 91.6e12, 0.864e12, 48e9, 32e9),
        Card("rtx4090", 165.2e12, 82.6e12, 82.6e12, 1.008e12, 24e9, 32e9),
    )
}


def asked_card(name: str | None, gpus: int = 1, efficiency: float = EFFICIENCY) -> Card:
    """The card of a name, upper or lower case. Raises UserError for a missing or unknown name, for less than one GPU,
    and for an efficiency outside (0, 1].
    """
    if name is None:
        raise UserError(f"a plan needs --gpu NAME, of {', '.join(CARDS)}")
    if gpus < 1:
        raise UserError(f"--gpus {gpus}: there must be at least one")
    if not 0 < efficiency <= 1:
        raise UserError(f"--efficiency {efficiency:g} must be above 0 and at most 1")
    key = name.strip().lower()
    if key not in CARDS:
        raise UserError(f"no GPU '{name}'{nearest(key, CARDS)}")
    return CARDS[key]
