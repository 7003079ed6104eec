"""Triton: what a kernel can do before the one before it has ended (programmatic dependent launch, Hopper and later)."""

# pyright: reportArgumentType=false, reportCallIssue=false

import triton
import triton.language as tl


@triton.jit
def prefetch(pointers):
    """Fetches the 128 bytes around each pointer into the L2 cache and waits for nothing."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers.to(tl.int64)], tl.int32, is_pure=False, pack=1
    )
