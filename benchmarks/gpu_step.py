"""Times the Triton kernels, the joint training step and the harvest on a CUDA device, beside what the device can do.

    python benchmarks/gpu_step.py                     GPT-2 large's shape, in ten minutes
    python benchmarks/gpu_step.py --shape gemma       Gemma's, or `both`;  --minutes 30, --no-tests, --json

First the parity tests run here, compiled for this device, and each kernel is checked against the plain torch ones at
full size; nothing is timed if one fails. A floor in time is the larger of the floating-point operations over the matmul
rate measured here and the bytes that must move at least once over the copy rate measured here; a floor in memory is
what must be there at once. Whole steps of all engines alternate; medians are reported. fp32 products are true fp32
everywhere, never TF32. What has not begun when the minutes are over is left out, and said. Without a CUDA device it
says so and ends.
"""

import argparse
import gc
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from gpu_clock import measured_card
from gpu_engines import step_rows
from gpu_harvest import harvest_rows
from gpu_kernels import kernel_rows
from gpu_parity import parity
from gpu_table import Deadline, Row, lines, until
from step import Shape, make_batches

from metasae.doctor.cards import Card
from metasae.sae.kernels import presence

SHAPES = {"paper": Shape(1280, 20480, 64, 4096, 1800, 4), "gemma": Shape(3584, 65536, 100, 4096, 5000, 4)}
TESTS = Path(__file__).parents[1] / "tests" / "sae" / "triton_parity.py"
# Of the minutes, the share that the parity tests may take.
TESTING = 0.4


def measure(
    name: str, shape: Shape, device: torch.device, card: Card, deadline: Deadline
) -> tuple[list[Row], list[str]]:
    """(rows, notes) of one shape. Ends the process where a kernel is further from plain torch than it may be."""
    batches = [batch.to(device) for batch in make_batches(shape)]
    checked = parity(shape, device, batches)
    for kernel, apart, limit in checked:
        if not apart <= limit:
            sys.exit(f"{name}: {kernel} is {apart:.1e} from plain torch, more than {limit:.0e}; nothing was timed")
    furthest, apart, _ = max(checked, key=lambda check: check[1])
    notes = [f"{name}: {len(checked)} parity checks passed, furthest apart: {furthest} {apart:.1e}"]
    gc.collect()
    rows = step_rows(shape, device, batches, card)
    kernels, whole = until(deadline, kernel_rows(shape, device, batches, card))
    if not whole:
        notes.append(f"{name}: the time was over; kernels after the last row are left out")
    return rows + kernels, notes


def run(shapes: dict[str, Shape], device: torch.device, minutes: float, matmul: int = 8192) -> dict:
    """The table's rows by shape, then the harvest's, and notes on what was checked and what was left out."""
    deadline, card = Deadline(60 * minutes), measured_card(device, matmul)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    out = {"device": name, "torch": torch.__version__, "card": card, "rows": {}, "notes": []}
    # the harvest comes first, as it is the shortest
    out["rows"]["harvest"], whole = until(deadline, harvest_rows(card, device))
    if not whole:
        out["notes"].append("harvest: the time was over; it is left out")
    for name, shape in shapes.items():
        gc.collect()
        torch.cuda.empty_cache()
        if not deadline.left():
            out["notes"].append(f"{name}: the time was over; it is left out")
            continue
        out["rows"][name], notes = measure(name, shape, device, card, deadline)
        out["notes"] += notes
    return out


def show(result: dict) -> None:
    card = result["card"]
    print(
        f"{result['device']}, torch {result['torch']}: matmul {card.bf16 / 1e12:.0f} TFLOP/s bf16, "
        f"{card.fp32 / 1e12:.1f} fp32 (no TF32); ",
        end="",
    )
    print(f"copy {card.bandwidth / 1e12:.2f} TB/s")
    rows = [replace(row, name=f"{name}: {row.name}") for name, of_name in result["rows"].items() for row in of_name]
    print("\n".join([*lines(rows), *result["notes"]]))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shape", choices=[*SHAPES, "both"], default="paper")
    options.add_argument("--minutes", type=float, default=9.0, help="what has not begun by then is left out")
    options.add_argument(
        "--no-tests", action="store_true", help="leave the parity tests out (the checks at full size remain)"
    )
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    if not torch.cuda.is_available():
        print(
            "benchmarks/gpu_step.py: there is no CUDA device here, so nothing is timed (benchmarks/step.py "
            "times the step on a CPU)"
        )
        return
    if why := presence.why_not_triton():
        sys.exit(f"benchmarks/gpu_step.py: {why}")
    if presence.INTERPRETED:
        sys.exit("benchmarks/gpu_step.py times compiled kernels: unset TRITON_INTERPRET")
    torch.backends.cuda.matmul.allow_tf32 = False
    deadline = Deadline(60 * given.minutes)
    if not given.no_tests:
        _parity_tests(TESTING * 60 * given.minutes)
    shapes = SHAPES if given.shape == "both" else {given.shape: SHAPES[given.shape]}
    result = run(shapes, torch.device("cuda"), deadline.left() / 60)
    if given.json:
        print(json.dumps(result, indent=2, default=asdict))
    else:
        show(result)


def _parity_tests(seconds: float) -> None:
    """Ends the process where they fail. Where they take longer they are given up, as the checks at full size are
    still to come.
    """
    try:
        failed = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", str(TESTS)], stdout=sys.stderr, timeout=seconds
        ).returncode
    except subprocess.TimeoutExpired:
        print(f"the parity tests were stopped after {seconds:.0f} s", file=sys.stderr)
        return
    if failed:
        sys.exit("the parity tests failed on this device; nothing was timed")


if __name__ == "__main__":
    main()
