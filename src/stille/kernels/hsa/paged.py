"""HSA's decode over a paged KV cache: signatures beside the keys, and one new token per sequence.

Shapes as in `stille.kernels.paged`: S sequences, H query heads, K key/value heads, D head width, pages
[num_pages, K, 64, D], a slot is `page * 64 + offset`. `paged_reference` is the specification.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stille.errors import UnsupportedError
from stille.kernels.hsa import paged_reference as reference
from stille.kernels.hsa import signatures
from stille.kernels.hsa.config import HSAConfig
from stille.kernels.triton_support import IN_TRITON, PAGE, next_power_of_2, require_triton, runs_triton

MAX_LENGTH = 1 << 20
"""Most tokens of a sequence that the Triton kernels take."""

MAX_KEPT = 8191  # leaves that a sequence reads; the selection packs two counts into one integer
MAX_GROUP = 64
MAX_DIM = 256


@dataclass(slots=True)
class PageCodes:
    """Signatures of the key pages of one layer, or, with one more leading axis, of all layers.

    Attributes:
        signs: uint8 [.., num_pages, K, 64, `paged_reference.sign_bytes(D)`]: levels of the rotated key minus its leaf's
            mean. Bit i of byte b is the sign of component 8b + i; up to D = 64 a second plane of 4 * ceil(D / 32) bytes
            follows, of half the weight. So 16 bytes for widths from 33 to 64 and from 97 to 128.
        scales: float16 [.., num_pages, K, 64]: what a key's levels are multiples of.
        means: int8 [.., num_pages, K, 64 // decode_leaf, D]: means of the rotated keys of a leaf.
        mean_scales: float16 [.., num_pages, K, 64 // decode_leaf]: what a mean's components are multiples of.
        rotation: orthogonal [K, D, D], or [layers, K, D, D], in the keys' dtype (`signatures.learn_rotation`). None:
            the randomised Hadamard matrix.
    """

    signs: Tensor
    scales: Tensor
    means: Tensor
    mean_scales: Tensor
    rotation: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is kept of the keys: signs, scales, means, mean_scales."""
        return self.signs, self.scales, self.means, self.mean_scales

    @staticmethod
    def allocate(shape: Sequence[int], config: HSAConfig, device: torch.device | str) -> "PageCodes":
        """Codes of empty pages.

        Args:
            shape: of the key pages: (num_pages, K, 64, D), with the number of layers in front if there are several.
            config: its decode_leaf counts.
            device: of the pages.

        Raises:
            ValueError: not the shape of pages.
            UnsupportedError: D is not a multiple of 16.
        """
        *front, page, dim = shape
        if len(front) not in (2, 3) or page != PAGE:
            raise ValueError(f"shape is {tuple(shape)}: expected ([layers,] num_pages, kv_heads, {PAGE}, head_dim)")
        _check_width(dim)
        return PageCodes(
            torch.zeros(*front, PAGE, reference.sign_bytes(dim), dtype=torch.uint8, device=device),
            torch.zeros(*front, PAGE, dtype=torch.float16, device=device),
            torch.zeros(*front, PAGE // config.decode_leaf, dim, dtype=torch.int8, device=device),
            torch.zeros(*front, PAGE // config.decode_leaf, dtype=torch.float16, device=device),
        )

    def layer(self, index: int) -> "PageCodes":
        """The codes of one layer; views."""
        turn = None if self.rotation is None else self.rotation[index]
        return PageCodes(*(part[index] for part in self.parts), rotation=turn)

    @staticmethod
    def bytes_per_page(kv_heads: int, head_dim: int, config: HSAConfig) -> int:
        """Memory of one page of one layer."""
        return kv_heads * (PAGE * (reference.sign_bytes(head_dim) + 2) + PAGE // config.decode_leaf * (head_dim + 2))


@dataclass(frozen=True)
class DecodeCut:
    """How the launches of a decode are cut up.

    Attributes:
        score_splits: programs of one warp that score a (sequence, key head), a power of two.
        score_pages: pages that such a program takes at a time: 1, 2 or 4.
        score_registers: most that a thread of it may use, so that more programs run at a time; 0: as many as it likes.
        select_warps: of the program that selects for a (sequence, key head).
        attend_splits: most programs that attend for one, a power of two.
        attend_keys: keys of an iteration.
        attend_warps, attend_stages: of such a program.
    """

    score_splits: int
    score_pages: int = 2
    score_registers: int = 0
    select_warps: int = 16
    attend_splits: int = 32
    attend_keys: int = 64
    attend_warps: int = 4
    attend_stages: int = 3


def decode_cut(sequences: int, kv_heads: int, group: int, head_dim: int, itemsize: int, leaves: int) -> DecodeCut:
    """A sensible cut: fill the GPU, keep a program's registers.

    Args:
        leaves: most of a sequence.
        itemsize: bytes of a component of a key.
    """
    programs = sequences * kv_heads
    wide = head_dim * itemsize
    pages = 1 if group > 4 and head_dim > 128 else 2
    most = next_power_of_2(max(1, leaves // (16 * pages)))  # more splits would have nothing to do
    return DecodeCut(
        score_splits=min(max(1, next_power_of_2(2048 // programs + 1) // 2), most, 256),
        score_pages=pages,
        score_registers=0 if group > 4 or head_dim > 128 else 128 if programs <= 32 else 112,
        select_warps=4 if leaves <= 1024 else 8 if leaves <= 4096 else 16 if leaves <= 8192 else 32,
        attend_splits=32 if programs <= 32 else 8 if programs <= 64 else 4,
        attend_keys=64 if wide <= 256 else 32,
        attend_warps=2 if programs <= 32 and wide <= 256 and group <= 16 else 4,
        attend_stages=2 if programs <= 32 or wide > 256 else 3,
    )


class HSAWorkspace:
    """Scratch memory of `hsa_decode`, reused by every layer and step on one stream.

    Args:
        sequences: most sequences of one call.
        heads, kv_heads, head_dim: shape of the attention.
        max_length: most tokens of a sequence.
        config: of the calls.
        dtype, device: of the tensors.
        cut: what calls will use; None: the default of each call's size, for which room is made.

    Raises:
        UnsupportedError: a shape or length that the kernels do not take.
    """

    def __init__(
        self,
        sequences: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        max_length: int,
        config: HSAConfig,
        dtype: torch.dtype,
        device: torch.device | str,
        cut: DecodeCut | None = None,
    ):
        from stille.kernels.hsa.triton_codes import padded_group, padded_width

        if max_length > MAX_LENGTH:
            raise UnsupportedError(f"{max_length} tokens of a sequence: HSA decodes at most {MAX_LENGTH} on the GPU.")
        _check_width(head_dim)
        group = heads // kv_heads
        if group > MAX_GROUP:
            raise UnsupportedError(f"{heads} query heads on {kv_heads}: at most {MAX_GROUP} to one are supported.")
        if config.budget // config.decode_leaf > MAX_KEPT:
            raise UnsupportedError(
                f"a budget of {config.budget}: HSA decodes with at most {MAX_KEPT * config.decode_leaf} on the GPU."
            )
        self.sequences, self.config, self._cut = sequences, config, cut
        self._shape = kv_heads, group, head_dim, dtype.itemsize
        self.leaves = -(-max_length // config.decode_leaf)
        cuts = [(n, self.cut(n)) for n in range(1, sequences + 1)] or [(0, self.cut(1))]
        cells, columns = sequences * kv_heads, 2 * padded_group(group)
        scored = max(n * c.score_splits for n, c in cuts) * kv_heads
        attended = max(n * c.attend_splits for n, c in cuts) * heads

        def empty(size: int, dtype: torch.dtype) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        self.code = empty(cells * columns * (reference.planes(head_dim) + 1) * padded_width(head_dim), torch.int8)
        self.coef = empty(cells * columns, torch.float32)
        self.mass_width = -(-self.leaves // 16) * 16  # rows of aligned beginnings
        self.mass = empty(cells * columns // 2 * self.mass_width, torch.float32)
        self.mass_stat = empty(scored * columns, torch.float32)
        keep = config.budget // config.decode_leaf
        self.choice_SKL = empty(cells * keep, torch.int64).view(sequences, kv_heads, keep)
        self.count_SK = empty(cells, torch.int32).view(sequences, kv_heads)
        self.part = empty(attended * head_dim, torch.float32)
        self.part_stat = empty(attended * 2, torch.float32)
        self.ticket = torch.zeros(cells, dtype=torch.int32, device=device)

    @property
    def index_SKL(self) -> Tensor:
        """Leaves that the last call has read, in ascending order; so many count as `count_SK` says."""
        return self.choice_SKL >> 32

    def cut(self, sequences: int) -> DecodeCut:
        """The cut of a call with so many sequences."""
        kv_heads, group, head_dim, itemsize = self._shape
        return self._cut or decode_cut(sequences, kv_heads, group, head_dim, itemsize, self.leaves)


def update_codes(k_pages: Tensor, codes: PageCodes, slots_N: Tensor, config: HSAConfig) -> None:
    """After keys were written: recompute the codes of every leaf whose last slot is among `slots_N`.

    Leaves are filled in order, so that is when a leaf is complete; incomplete ones are never scored. One launch, no
    wait for the GPU. In a step of decode `hsa_decode` can do it on the way.

    Args:
        k_pages: the layer's keys.
        codes: the layer's codes, written.
        slots_N: int32 or int64, on the pages' device; repeated slots and those of padding do no harm, negative ones are
            passed over.
        config: its decode_leaf counts.

    Raises:
        ValueError: the codes are not those of such pages.
        UnsupportedError: a dtype or width that the kernels do not take; CUDA tensors without Triton.
    """
    _check_codes(k_pages, codes, config)
    rotation = _rotation(codes, k_pages)
    if runs_triton(k_pages):
        from stille.kernels.hsa.triton_codes import encode_slots

        encode_slots(k_pages, *codes.parts, rotation, slots_N, config.decode_leaf)
    else:
        reference.update_codes(k_pages, *codes.parts, rotation, slots_N, config.decode_leaf)


def hsa_decode(
    q_SHD: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    codes: PageCodes,
    page_table_SP: Tensor,
    lengths_S: Tensor,
    scale: float,
    config: HSAConfig,
    *,
    slots_N: Tensor | None = None,
    sequences: int | None = None,
    table_stride: Tensor | int | None = None,
    out: Tensor | None = None,
    workspace: HSAWorkspace | None = None,
    pdl: bool = False,
) -> Tensor:
    """Sparse attention of one query token per sequence: at most `config.budget` cached keys per key head are read.

    A sequence that fits the budget is attended in full. Otherwise sinks, local window and the newest token's leaf, and
    the leaves of `config.decode_leaf` keys that the signatures put first; one choice for all query heads of a key head.
    Of the config, only budget, decode_leaf, sinks and local count here. Nothing waits for the GPU, and launches depend
    on shapes only: the call can be captured in a CUDA graph after one call outside of it.

    Args:
        q_SHD: queries of the newest tokens, whose keys and values are already in the cache.
        k_pages, v_pages: the layer's cache.
        codes: the layer's codes, up to date for the leaves before the newest token's (`update_codes`).
        page_table_SP: int32 (int64 is fine), pages of each sequence, in order; entries beyond its length are not read.
            With `table_stride` and a workspace it may be flat.
        lengths_S: tokens in the cache, the newest included; 0 gives a row of zeros (padding).
        scale: factor of the scores.
        config: sizes.
        slots_N: slots that this step has written. The codes of leaves that end with one of them are updated on the way,
            and first used by the next call.
        sequences: rows of q that are sequences, the first ones; None: as many as there are lengths.
        table_stride: entries from one row of a flat table to the next; an integer, or a tensor with one, which a
            captured graph reads anew.
        out: where to write, optionally. Rows beyond `sequences` are left alone.
        workspace: scratch memory; None: made for this call. Without one, no sequence may be longer than the table is
            wide.
        pdl: launch dependents early (CUDA only).

    Returns:
        o_SHD, in q's dtype.

    Raises:
        ValueError: shapes do not fit each other or the workspace.
        UnsupportedError: a dtype, width, group or length that the kernels do not take; CUDA tensors without Triton.
    """
    _check(q_SHD, k_pages, v_pages)
    _check_codes(k_pages, codes, config)
    sequences = lengths_S.shape[0] if sequences is None else sequences
    stride = page_table_SP.stride(0) if table_stride is None else table_stride
    if page_table_SP.ndim != 2 and (table_stride is None or workspace is None):
        raise ValueError("a flat page table needs table_stride, and a workspace to tell how long sequences can be.")
    rotation = _rotation(codes, k_pages)
    if not runs_triton(q_SHD):
        if slots_N is not None:
            update_codes(k_pages, codes, slots_N, config)
        table = page_table_SP
        if table.ndim != 2:
            table = table[: sequences * int(stride)].view(sequences, -1)
        result = reference.hsa_decode(
            q_SHD[:sequences], k_pages, v_pages, *codes.parts, rotation, table, lengths_S[:sequences], scale, config
        )
        if out is None:
            return result
        out[:sequences] = result
        return out
    from stille.kernels.hsa import triton_decode

    if workspace is None:
        workspace = HSAWorkspace(
            sequences, q_SHD.shape[1], k_pages.shape[1], q_SHD.shape[2], page_table_SP.shape[1] * PAGE, config,
            q_SHD.dtype, q_SHD.device,
        )  # fmt: skip
    elif workspace.sequences < sequences or workspace.config != config:
        raise ValueError(
            f"the workspace is for {workspace.sequences} sequences and {workspace.config}; this call has {sequences} "
            f"sequences and {config}."
        )
    if k_pages.shape[0] * k_pages.shape[1] * PAGE >= 1 << 31:  # rows are counted in 32 bits, bytes in 64
        raise UnsupportedError(f"k_pages {tuple(k_pages.shape)}: a layer's cache of at most 2^31 keys is supported.")
    out = torch.empty_like(q_SHD) if out is None else out
    if sequences:
        triton_decode.hsa_decode(
            q_SHD, k_pages, v_pages, codes, rotation, page_table_SP, stride, lengths_S, sequences, scale, config,
            slots_N, out, workspace, pdl,
        )  # fmt: skip
    return out


def _rotation(codes: PageCodes, k_pages: Tensor) -> Tensor:
    if codes.rotation is None:
        return signatures.hadamard(k_pages.shape[3], k_pages)
    return codes.rotation


def _check_width(dim: int) -> None:
    if dim % 16 or not 16 <= dim <= MAX_DIM:
        raise UnsupportedError(f"head_dim is {dim}: expected a multiple of 16 up to {MAX_DIM}.")


def _check(q: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    if k_pages.shape != v_pages.shape or not v_pages.is_contiguous():
        raise ValueError(
            f"k_pages {tuple(k_pages.shape)} and v_pages {tuple(v_pages.shape)}: expected one shape, both contiguous."
        )
    if q.ndim != 3 or q.shape[2] != k_pages.shape[-1] or q.shape[1] % k_pages.shape[1]:
        raise ValueError(
            f"q {tuple(q.shape)} does not fit pages {tuple(k_pages.shape)}: expected [rows, heads, head_dim] with the "
            "pages' head_dim and a multiple of their kv_heads."
        )
    if q.stride(2) != 1 or q.stride(1) != q.shape[2]:
        raise ValueError(f"q has strides {q.stride()}; heads and components of a row must be contiguous.")
    if q.dtype != k_pages.dtype or q.dtype != v_pages.dtype:
        raise UnsupportedError(
            f"q is {q.dtype}, the pages are {k_pages.dtype} and {v_pages.dtype}: expected one dtype for all."
        )
    if q.is_cuda:
        require_triton("HSA on a GPU")


def _check_codes(k_pages: Tensor, codes: PageCodes, config: HSAConfig) -> None:
    if k_pages.ndim != 4 or k_pages.shape[2] != PAGE or not k_pages.is_contiguous():
        raise ValueError(
            f"k_pages {tuple(k_pages.shape)}: expected contiguous pages [num_pages, kv_heads, {PAGE}, head_dim]."
        )
    pages, kv_heads, _, dim = k_pages.shape
    _check_width(dim)
    if k_pages.dtype not in IN_TRITON:
        names = ", ".join(str(dtype) for dtype in IN_TRITON)
        raise UnsupportedError(f"the pages are {k_pages.dtype}: expected one of {names}.")
    wanted = {
        "signs": ((pages, kv_heads, PAGE, reference.sign_bytes(dim)), torch.uint8),
        "scales": ((pages, kv_heads, PAGE), torch.float16),
        "means": ((pages, kv_heads, PAGE // config.decode_leaf, dim), torch.int8),
        "mean_scales": ((pages, kv_heads, PAGE // config.decode_leaf), torch.float16),
    }
    if codes.rotation is not None:
        wanted["rotation"] = ((kv_heads, dim, dim), k_pages.dtype)
    for name, (shape, dtype) in wanted.items():
        tensor = getattr(codes, name)
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(
                f"codes.{name} is {tensor.dtype} {tuple(tensor.shape)}: expected contiguous {dtype} {shape} for these "
                f"pages and a decode_leaf of {config.decode_leaf}; see PageCodes.allocate and PageCodes.layer."
            )
