"""What this machine's processor can do. No torch here."""

from __future__ import annotations

from pathlib import Path

__all__ = ["lacks_bfloat16"]

_CPUINFO = Path("/proc/cpuinfo")
# Linux's names of the instructions that multiply bfloat16 (x86's AVX-512, AMX and AVX2 ones, Arm's), as torch's kernels use them
_BFLOAT16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}


def lacks_bfloat16() -> bool:
    """Whether it is known that products of bfloat16 are computed without instructions for them, as on Linux alone it can be."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    found = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return bool(found) and not _BFLOAT16 & set(found[0])
