"""What a processor or GPU can do, and a GPU made the one that this process works on."""

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices itself. Older GPUs hold bf16 numbers and only emulate their products."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = [getattr(torch.cpu, check, None) for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    return device.type == "cpu" and any(check() for check in checks if check is not None)


def work_on(device: torch.device) -> None:
    """Makes a GPU the current one, on which Triton launches whatever its tensors' GPU is; and sums of bf16 products are in fp32 there.

    Nothing for a processor.
    """
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
