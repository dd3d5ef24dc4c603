"""Kernel that finds keys and copies their rows, so that a row crosses the GPU's memory bus only twice.

Written in the Triton language (OpenAI's compiler, which comes with PyTorch for CUDA; not NVIDIA's Triton server), and
imported only if that is installed. Otherwise ``device_cache`` does the same with PyTorch's operations.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]

from .host_cache import FACTOR_1, FACTOR_2, WAYS

NUMBERS, KEYS = 4096, 256  # maximum that one program copies, and looks up


def gather(
    keys: torch.Tensor, table: torch.Tensor, used: torch.Tensor, rows: torch.Tensor, sets: int, now: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Look keys up and set the time of their last use.

    Args:
        keys: int64[n].
        table: int64[sets + 1, WAYS], the keys held; no key belongs to the last set.
        used: int64[(sets + 1) * WAYS], the times of last use.
        rows: float32[(sets + 1) * WAYS, dim]; the first row of the last set is the default.
        sets: number of sets for keys.
        now: the time.

    Returns:
        rows float32[n, dim] and hits bool[n].
    """
    n, dim = len(keys), rows.shape[1]
    out = torch.empty(n, dim, device=keys.device)
    hits = torch.empty(n, dtype=torch.bool, device=keys.device)
    if n:
        width = 1 << (dim - 1).bit_length()
        block = min(max(NUMBERS // width, 1), KEYS)
        _gather[(-(-n // block),)](
            keys.contiguous(), table, used, rows, out, hits, n, sets, now,
            factor_1=int(FACTOR_1), factor_2=int(FACTOR_2), ways=WAYS, dim=dim, width=width, block=block,
        )  # fmt: skip
    return out, hits


# Numbers that change are not specialised: Triton would compile the kernel again for multiples of 16. It reads the
# annotations, too, and takes none but these.
@triton.jit(do_not_specialize=["n", "sets", "now"])
def _gather(  # type: ignore[no-untyped-def]
    keys_at, table_at, used_at, rows_at, out_at, hits_at, n, sets, now,
    factor_1: tl.constexpr, factor_2: tl.constexpr, ways: tl.constexpr,
    dim: tl.constexpr, width: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    live = place < n
    key = tl.load(keys_at + place, mask=live, other=0)
    x = key.to(tl.uint64)
    x ^= x >> 30
    x *= factor_1
    x ^= x >> 27
    x *= factor_2
    key_set = ((x >> 32) * sets.to(tl.uint64) >> 32).to(tl.int64)
    slots = key_set[:, None] * ways + tl.arange(0, ways)[None, :]
    match = tl.load(table_at + slots) == key[:, None]
    slot = tl.max(tl.where(match, slots, -1), axis=1)
    hit = slot >= 0
    tl.store(hits_at + place, hit, mask=live)
    tl.store(used_at + slot, now, mask=live & hit)
    slot = tl.where(hit, slot, sets.to(tl.int64) * ways)
    column = tl.arange(0, width)
    wanted = live[:, None] & (column < dim)[None, :]
    row = tl.load(rows_at + slot[:, None] * dim + column[None, :], mask=wanted)
    tl.store(out_at + place[:, None] * dim + column[None, :], row, mask=wanted)
