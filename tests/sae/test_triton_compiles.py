"""Every Triton kernel compiles for an H100, which needs no GPU: what the interpreter takes is not always what the
compiler takes.

Registers are looked at as well, since a kernel that spills is correct and slow.
"""

import re
import subprocess
from pathlib import Path

import pytest

from metasae.sae.kernels.presence import INTERPRETED

triton = pytest.importorskip("triton", reason="triton is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(INTERPRETED, reason="kernels are interpreted in this process"),
]

F, H, I32, I64 = "*fp32", "*bf16", "*i32", "*i64"
SPLIT = {"offsets": I32, "owner": I32, "count": I32, "end": I32, "slot_end": I32, "S": "i32"}
TILES = {"B": "i32", "N": "i32", "capacity": "i32", "cut": F, "keys": I64, "count": I32}


def cases():
    """(name, module, kernel, types, constants, warps, stages)"""
    for d, part, whole in ((1280, 256, 2048), (3584, 512, 4096)):
        row, some = min(16, whole // 256), min(8, part // 64)
        for two in (False, True):
            types = SPLIT | {
                "out0": F,
                "out1": F,
                "partial0": F,
                "partial1": F,
                "table0": F,
                "table1": F,
                "weight0": F,
                "weight1": F,
            }
            constants = {"D": d, "TWO": two, "ORDERED": not two, "CHUNK": 128, "AT_ONCE": 8, "BLOCK": part}
            yield (
                f"sum_chunks {d} {two}",
                "segments",
                "_sum_chunks",
                types | {"index": I32, "order": I64},
                constants,
                some,
                3,
            )
        types = {
            "out0": F,
            "out1": F,
            "partial0": F,
            "partial1": F,
            "slot_owner": I32,
            "count": I32,
            "slot_end": I32,
            "S": "i32",
        }
        yield f"add_partials {d}", "segments", "_add_partials", types, {"D": d, "TWO": True, "BLOCK": part}, some, 3
        types = SPLIT | {"dots": F, "left": F, "right": F, "index": I32}
        yield (
            f"dot_chunks {d}",
            "segments",
            "_dot_chunks",
            types,
            {"D": d, "CHUNK": 128, "AT_ONCE": 8, "BLOCK": part},
            some,
            3,
        )
        types = {"r": F, "squares": F, "dots": F, "table": F, "xc": F, "values": F, "latents": I32, "offsets": I32}
        yield (
            f"residual {d}",
            "decoding",
            "_residual",
            types,
            {"D": d, "LONG": 1024, "AT_ONCE": 4, "BLOCK": whole},
            row,
            3,
        )
        yield f"less {d}", "decoding", "_less", types, {"D": d, "LONG": 1024, "BLOCK": whole}, 4, 3
        types = {
            "W": F,
            "gradient": F,
            "mean": F,
            "square": F,
            "numbers": F,
            "rest1": "fp32",
            "beta2": "fp32",
            "rest2": "fp32",
            "eps": "fp32",
        }
        yield f"step_row {d}", "adam", "_step_row", types, {"D": d, "UNIT": "after", "BLOCK": whole}, row, 3
        types = {"W": F, "b": F, "out": H, "mean": F, "std": F, "eps": "fp32"}
        yield f"normalise {d}", "penalty", "_normalise", types, {"D": d, "BLOCK": whole}, row, 3
        types = {name: F for name in ("W", "values", "table", "b", "mean", "std", "share", "e", "p", "into")}
        types |= {"latents": I32, "offsets": I32, "inverse": "fp32", "factor": "fp32"}
        constants = {"D": d, "TOKEN": True, "SHARE": True, "INTO": True, "AT_ONCE": 4, "BLOCK": whole}
        yield f"penalise {d}", "penalty", "_penalise", types, constants, row, 3
    for dtype, bits in ((H, 15), (F, 31)):
        types = {"pre": dtype, "out": dtype, "n": "i32", "keep": "i32"}
        yield f"keep_rows {dtype}", "toprows", "_keep_rows", types, {"BITS": bits, "BLOCK": 4096}, 8, 3
        types = {"pre": dtype, "keys": I64, "count": I32, "cut": F, "size": "i32", "capacity": "i32"}
        yield f"gather {dtype}", "selection", "_gather", types, {"BLOCK": 4096}, 8, 3
    for dtype in (H, F):
        for select in (True, False):
            yield (
                f"encode {dtype} {select}",
                "encoding",
                "_encode",
                TILES | {"x": dtype, "W": dtype, "b": dtype, "pre": dtype},
                select,
                0,
                0,
            )


CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_compiles_for_an_h100_within_its_registers(case, tmp_path):
    import importlib

    import torch
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    name, module, kernel, types, constants, warps, stages = case
    module = importlib.import_module(f"metasae.sae.kernels.triton.{module}")
    if kernel == "_encode":
        bf16 = types["x"] == H
        tiles = module.TILES[torch.bfloat16 if bf16 else torch.float32]
        warps, stages = tiles.warps, tiles.stages
        sizes = {
            "ROWS": tiles.rows,
            "COLUMNS": tiles.columns,
            "DEPTH": tiles.depth,
            "GROUP": tiles.group,
            "WIDEN": False,
        }
        constants = sizes | {"D": 1280, "BIAS": True, "SELECT": constants, "BF16": bf16}
    kernel = getattr(module, kernel)
    names = kernel.arg_names
    signature = {arg: "constexpr" if arg in constants else types[arg] for arg in names}
    # pointers come from torch, which aligns them; sizes that are multiples of 16 are usual
    attrs = {
        (names.index(arg),): [["tt.divisibility", 16]]
        for arg, kind in signature.items()
        if kind.startswith("*") or kind == "i32"
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(arg),): value for arg, value in constants.items()},
        attrs=attrs,
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages}
    )
    assert compiled.metadata.shared <= 227 * 1024
    if name.startswith("encode *bf16"):
        assert "wgmma.mma_async" in compiled.asm["ptx"], "bf16 products do not run on the tensor cores"
    program = tmp_path / "kernel.cubin"
    program.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if tool.exists():
        usage = subprocess.run([tool, "-res-usage", program], capture_output=True, text=True).stdout
        assert int(re.search(r"STACK:(\d+)", usage)[1]) <= 128, usage
