"""Which part of n things belongs to which rank: stretches of ceil(n / W), as torch.chunk and DTensor cut them."""

from metasae.errors import UserError


def shard(n: int, size: int, rank: int) -> range:
    """The things start <= i < stop of one rank. The last stretches are shorter, where n does not divide, and may be empty."""
    step = -(-n // size)
    return range(min(n, rank * step), min(n, (rank + 1) * step))


def own_latents(n: int, size: int, rank: int) -> range:
    """The latents of one rank. Raises UserError where some rank would have none."""
    if not len(shard(n, size, size - 1)):
        raise UserError(
            f"{n} latents cannot be spread over {size} ranks in stretches of {-(-n // size)}; use fewer ranks"
        )
    return shard(n, size, rank)
