"""The kernels on a CUDA device, in Triton: the functions of `reference.py` with the same signatures, and fused ones
beside them.

Sums are in fp32 whatever goes in; fp32 products are true fp32, never TF32; bf16 products are summed in fp32.
No float is added by an atomic, so a step gives the same bits from run to run. Which functions wait for the device:

    encode, decode, entry_dots, latent_rows, keep_rows, take_columns      never
    residual, normalised, penalise, RowAdam.step                          never
    encode_propose                        never; its caller looks at `n_above` before the weights change
    select, encode_select, add_penalty    once, to learn that the search was enough; twice without a warm cut
    select_rows                           once, to learn how many entries are above zero

`encode_select`, `residual`, `add_penalty` and `RowAdam` do in one pass what the plain step does in several.
"""

from metasae.sae.kernels.fast import encode
from metasae.sae.kernels.triton.adam import RowAdam
from metasae.sae.kernels.triton.decoding import decode, entry_dots, residual
from metasae.sae.kernels.triton.encoding import encode_propose, encode_select
from metasae.sae.kernels.triton.penalty import add_penalty, normalised, penalise
from metasae.sae.kernels.triton.rows import latent_rows
from metasae.sae.kernels.triton.selection import select
from metasae.sae.kernels.triton.toprows import keep_rows, select_rows, take_columns

__all__ = [
    "RowAdam",
    "add_penalty",
    "decode",
    "encode",
    "encode_propose",
    "encode_select",
    "entry_dots",
    "keep_rows",
    "latent_rows",
    "normalised",
    "penalise",
    "residual",
    "select",
    "select_rows",
    "take_columns",
]
