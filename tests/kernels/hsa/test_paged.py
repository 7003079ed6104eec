"""HSA's decode over pages: the kernels against the specification, the specification against dense attention."""

import dataclasses

import pytest
import torch

from stille.errors import UnsupportedError
from stille.kernels.hsa import HSAConfig, HSAWorkspace, PageCodes, hsa_decode, paged, signatures, update_codes
from stille.kernels.hsa import paged_reference as ref
from stille.kernels.hsa.paged import DecodeCut
from stille.kernels.paged import reference as dense
from stille.kernels.triton_support import has_triton, runs_triton

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32  # Triton's interpreter has no bf16 matrix product
TOLERANCE = 2e-2 if ON_GPU else 1e-4
SMALL = HSAConfig(budget=384, sinks=64, local=64)
FEW = DecodeCut(score_splits=4, attend_splits=4)

needs_triton = pytest.mark.skipif(not has_triton(), reason="needs triton")

CASES = [  # key heads, group, head width, lengths, changes of the config
    (2, 4, 128, [700, 0, 333, 385], {}),
    (1, 3, 64, [1537], {}),
    (1, 8, 96, [1024], {"decode_leaf": 32}),
    (1, 1, 256, [799], {"decode_leaf": 64, "budget": 448}),
    (1, 20, 80, [800], {}),
    (1, 2, 48, [600], {}),
    (1, 2, 16, [600], {"sinks": 0, "local": 0}),
]


class Cache:
    """Pages in a shuffled order, filled with keys that resemble their neighbours."""

    def __init__(self, case, seed=0, rotation=None):
        self.kv_heads, group, self.dim, lengths, change = case
        self.config = dataclasses.replace(SMALL, **change)
        random = torch.Generator().manual_seed(seed)

        def rand(*shape, gain=1.0):
            return (torch.randn(*shape, generator=random) * gain).to(DEVICE, DTYPE)

        width = -(-max(lengths) // 64)
        pages = len(lengths) * width + 1
        order = torch.randperm(pages - 1, generator=random)[: len(lengths) * width] + 1
        self.table = order.view(len(lengths), width).int().to(DEVICE)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
        keys = rand(pages, self.kv_heads, 64, self.dim)
        self.k = keys + keys.roll(1, 2) + 0.3
        self.v = rand(pages, self.kv_heads, 64, self.dim)
        self.q = rand(len(lengths), self.kv_heads * group, self.dim, gain=2)
        self.scale = self.dim**-0.5
        self.codes = PageCodes.allocate(self.k.shape, self.config, DEVICE)
        self.codes.rotation = rotation
        ends = torch.arange(64 + 15, pages * 64, 16, dtype=torch.int32)  # the slots that complete leaves
        self.slots = torch.cat([ends, torch.tensor([-1, 70], dtype=torch.int32)]).to(DEVICE)

    def workspace(self, extra_rows=0, cut=FEW):
        rows, heads, dim = self.q.shape
        longest = self.table.shape[1] * 64
        return HSAWorkspace(rows + extra_rows, heads, self.kv_heads, dim, longest, self.config, DTYPE, DEVICE, cut)

    def args(self):
        return self.q, self.k, self.v, self.codes, self.table, self.lengths, self.scale, self.config

    @property
    def turn(self):
        return signatures.hadamard(self.dim, self.k) if self.codes.rotation is None else self.codes.rotation

    def encode(self):
        ref.update_codes(self.k, *self.codes.parts, self.turn, self.slots, self.config.decode_leaf)

    def reference(self):
        parts = self.codes.parts
        return ref.hsa_decode(
            self.q, self.k, self.v, *parts, self.turn, self.table, self.lengths, self.scale, self.config
        )

    def dense(self):
        return dense.decode_attention(self.q, self.k, self.v, self.table, self.lengths, self.scale)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_follow_the_specification(case):
    """Codes; then what is selected; then the attention to the very leaves that were selected."""
    c = Cache(case)
    some = PageCodes.allocate(c.k.shape, c.config, DEVICE)
    update_codes(c.k, some, c.slots[1::11], c.config)
    c.encode()
    leaf = c.config.decode_leaf
    done = some.means.any(-1)
    keys = done.repeat_interleave(leaf, -1)
    assert done.any()
    same = ref.unpack_levels(some.signs[keys], c.dim) == ref.unpack_levels(c.codes.signs[keys], c.dim)
    assert same.float().mean() > 0.99, "components near the bounds of levels may round over them"
    torch.testing.assert_close(some.scales[keys], c.codes.scales[keys], rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(some.mean_scales[done], c.codes.mean_scales[done], rtol=1e-2, atol=1e-4)
    assert (some.means[done].int() - c.codes.means[done]).abs().max() <= 1, "halves may round to either side"
    assert not some.scales[~keys].any()

    workspace = c.workspace()
    workspace.choice_SKL.fill_(-1)
    out = hsa_decode(*c.args(), workspace=workspace)
    agree = total = 0
    for row, length in enumerate(c.lengths.tolist()):
        listed, count = workspace.index_SKL[row], workspace.count_SK[row]
        leaves = -(-length // c.config.decode_leaf)
        assert count.tolist() == [min(leaves, c.config.budget // c.config.decode_leaf)] * c.kv_heads
        read = torch.zeros(c.kv_heads, leaves, dtype=torch.bool, device=DEVICE)
        for head in range(c.kv_heads):
            ids = listed[head, : count[head]].long()
            assert torch.equal(ids, ids.unique()), "ascending, each once"
            read[head, ids] = True
        if not length:
            assert not out[row].any()
            continue
        codes = ref.gather_codes(*c.codes.parts, c.table[row], length)
        wanted = ref.chosen_leaves(c.q[row], codes, c.turn, length, c.scale, c.config)
        agree, total = agree + int((read & wanted).sum()), total + int(wanted.sum())
        exact = ref.attend_leaves(c.q[row], c.k, c.v, c.table[row], read, length, c.scale, c.config.decode_leaf)
        torch.testing.assert_close(out[row].float(), exact, atol=TOLERANCE, rtol=TOLERANCE)
    assert agree / total > (0.97 if ON_GPU else 0.995), "roundings move near ties"


@needs_triton
def test_a_budget_for_everything_is_dense_attention():
    c = Cache((2, 3, 64, [600, 0, 65], {"budget": 640}))
    c.codes.scales.fill_(torch.nan)  # codes are not even looked at
    torch.testing.assert_close(
        hsa_decode(*c.args(), workspace=c.workspace()), c.dense(), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_specification_reads_its_budget_and_finds_what_matters():
    """One far key that the query looks for is read; the count is the budget; sinks, window and last leaf are in."""
    c = Cache((1, 2, 64, [1301], {}))
    far = 700
    page, offset = int(c.table[0, far // 64]), far % 64
    c.k[page, 0, offset] = c.q[0].float().mean(0).to(DTYPE) * 6
    c.encode()
    codes = ref.gather_codes(*c.codes.parts, c.table[0], 1301)
    read = ref.chosen_leaves(c.q[0], codes, c.turn, 1301, c.scale, c.config)[0]
    assert int(read.sum()) == 384 // 16
    assert read.shape == (82,)
    assert read[:4].all()
    assert read[-5:].all()
    assert read[far // 16]


def test_ranks_are_a_logarithmic_grid():
    mass = torch.tensor([[0.0, -0.001, -1.0, -40.0, float("-inf")]])
    rank = ref.ranks(mass, 1)[0].tolist()
    assert rank[0] - rank[1] <= 1
    assert rank[1] > rank[2] > rank[3] == rank[4] == 0
    assert rank[0] - rank[2] == pytest.approx(32 / 0.6931, abs=16)  # a floating-point mantissa is not quite a logarithm


@needs_triton
def test_codes_of_a_leaf_appear_with_its_last_slot():
    """Token by token gives the codes that a whole chunk gives; nothing else is touched."""
    c = Cache((2, 1, 64, [200], {}))
    whole = PageCodes.allocate(c.k.shape, c.config, DEVICE)
    update_codes(c.k, whole, torch.arange(64, 192, device=DEVICE, dtype=torch.int32), c.config)
    update_codes(c.k, c.codes, torch.arange(64, 79, device=DEVICE), c.config)
    assert not c.codes.scales.any()
    for slot in range(79, 192, 16):
        update_codes(c.k, c.codes, torch.tensor([slot, 5, -1], device=DEVICE), c.config)
    assert all(map(torch.equal, c.codes.parts, whole.parts))
    assert whole.scales[1:3].all()
    assert not whole.scales[3:].any()
    assert not whole.scales[0].any()


@needs_triton
def test_codes_updated_on_the_way_learned_rotations_and_a_flat_table():
    """The leaf that the newest token completes is encoded, not scored; stride in a tensor; rows beyond stay."""
    lengths = [496, 450]
    rotation = torch.linalg.qr(torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(3)))[0]
    c = Cache((2, 2, 64, lengths, {}), rotation=rotation.to(DEVICE, DTYPE).contiguous())
    update_codes(c.k, c.codes, c.slots, c.config)  # by the kernel: in bf16 the specification rounds otherwise
    want = hsa_decode(*c.args(), workspace=c.workspace())
    torch.testing.assert_close(want, c.reference(), atol=5e-2, rtol=5e-2)
    fresh = PageCodes(*(part.clone() for part in c.codes.parts), rotation=c.codes.rotation)
    pages = c.table[torch.arange(2, device=DEVICE), (c.lengths.long() - 1) // 64].long()
    done = int(pages[0])  # its keys 32 to 47 are complete with this token
    fresh.signs[done, :, 32:48], fresh.scales[done, :, 32:48] = 255, 1000
    fresh.means[done, :, 2], fresh.mean_scales[done, :, 2] = 127, 1000
    slots = torch.cat([pages * 64 + (c.lengths.long() - 1) % 64, torch.tensor([-1] * 9, device=DEVICE)])
    width = c.table.shape[1]
    workspace = c.workspace(1)
    out = torch.full((3, 4, 64), 7.0, device=DEVICE, dtype=DTYPE)
    q = torch.cat([c.q, c.q[:1]])
    stride = torch.tensor([width], dtype=torch.int32, device=DEVICE)
    got = hsa_decode(
        q, c.k, c.v, fresh, c.table.flatten().long(), c.lengths.long(), c.scale, c.config,
        slots_N=slots, sequences=2, table_stride=stride, out=out, workspace=workspace,
    )  # fmt: skip
    assert got is out
    assert (got[2] == 7).all()
    assert torch.equal(got[:2], want)
    assert all(map(torch.equal, fresh.parts, c.codes.parts))


def test_without_triton(monkeypatch):
    """Plain torch through the public functions: the same as the kernels' specification."""
    monkeypatch.setattr(paged, "runs_triton", lambda tensor: False)
    c = Cache((2, 2, 64, [500, 0, 100], {}))
    out = torch.full((4, 4, 64), 7.0, device=DEVICE, dtype=DTYPE)
    q = torch.cat([c.q, c.q[:1]])
    width = torch.tensor([c.table.shape[1]])
    workspace = object.__new__(HSAWorkspace)
    hsa_decode(
        q, c.k, c.v, c.codes, c.table.flatten(), c.lengths, c.scale, c.config, slots_N=c.slots, table_stride=width,
        out=out, workspace=workspace,
    )  # fmt: skip
    assert torch.equal(out[:3], c.reference())
    assert (out[3] == 7).all()
    assert c.codes.scales[1:].all()


def reconstruction_error(x):
    signs, scales = ref.quantise(x)
    levels = ref.unpack_levels(ref.pack_signs(signs), x.shape[-1])
    return float((x - levels * scales[:, None]).square().sum() / x.square().sum())


def test_levels_of_a_gaussian():
    """Two bits lose a third of what one loses; their scale is the best one."""
    random = torch.Generator().manual_seed(0)
    for dim in (16, 48, 64):
        x = torch.randn(1000, dim, generator=random) * torch.rand(1000, 1, generator=random)
        assert reconstruction_error(x) < 0.13
        signs, scales = ref.quantise(x)
        left = x - ref.levels(signs) * scales[:, None]
        torch.testing.assert_close((left * ref.levels(signs)).sum(-1), torch.zeros(1000), atol=1e-4, rtol=0)
        assert set(ref.levels(signs).unique().tolist()) == {-1.5, -0.5, 0.5, 1.5}
    for dim in (80, 128):
        assert 0.34 < reconstruction_error(torch.randn(1000, dim, generator=random)) < 0.38


@pytest.mark.parametrize(("dim", "size"), [(16, 8), (32, 8), (48, 16), (64, 16), (80, 12), (128, 16), (256, 32)])
def test_packed_signs_come_back(dim, size):
    signs, _ = ref.quantise(torch.randn(5, dim, generator=torch.Generator().manual_seed(dim)))
    packed = ref.pack_signs(signs)
    assert packed.shape == (5, size) == (5, ref.sign_bytes(dim))
    assert torch.equal(ref.unpack_levels(packed, dim), ref.levels(signs))


@needs_triton
@pytest.mark.parametrize("dim", [64, 128])
def test_keys_that_are_all_alike_or_huge(dim):
    """No spread within a leaf: a scale of 0. Beyond what fp16 holds: its largest number."""
    c = Cache((1, 2, dim, [448], {}))
    c.k[:, :, :16] = 1.5
    c.k[:, :, 16:32] *= 1e7
    c.encode()
    kernel = PageCodes.allocate(c.k.shape, c.config, DEVICE)
    update_codes(c.k, kernel, c.slots, c.config)
    for codes in (c.codes, kernel):
        assert codes.scales[1:, :, :16].max() < 1e-2, "but for roundings"
        assert (codes.scales[1:, :, 16:32] == 65504).all()
        assert all(x.float().isfinite().all() for x in codes.parts)


def test_layers_and_bytes():
    config = HSAConfig(decode_leaf=32)
    codes = PageCodes.allocate((3, 5, 2, 64, 96), config, "cpu")
    codes.rotation = torch.zeros(3, 2, 96, 96)
    one = codes.layer(1)
    assert one.signs.shape == (5, 2, 64, 12)
    assert one.scales.shape == (5, 2, 64)
    assert one.means.shape == (5, 2, 2, 96)
    assert one.mean_scales.shape == (5, 2, 2)
    one.scales.fill_(1)
    assert codes.scales[1].all()
    assert not codes.scales[0].any()
    assert one.rotation is not None
    assert one.rotation.shape == (2, 96, 96)
    size = sum(x.numel() * x.element_size() for x in one.parts)
    assert PageCodes.bytes_per_page(2, 96, config) * 5 == size


def test_bad_input_is_refused():
    c = Cache((1, 2, 64, [300], {}))
    with pytest.raises(ValueError, match="page"):
        PageCodes.allocate((4, 1, 32, 64), c.config, DEVICE)
    with pytest.raises(UnsupportedError, match="head_dim"):
        PageCodes.allocate((4, 1, 64, 40), c.config, DEVICE)
    with pytest.raises(ValueError, match=r"codes\.means"):
        update_codes(c.k, c.codes, c.slots, dataclasses.replace(c.config, decode_leaf=32))
    with pytest.raises(ValueError, match=r"codes\.signs"):
        update_codes(c.k[1:], c.codes, c.slots, c.config)
    q, k, v, codes, table, lengths, scale, config = c.args()
    with pytest.raises(ValueError, match="does not fit"):
        hsa_decode(q[:, :, :32], k, v, codes, table, lengths, scale, config)
    with pytest.raises(UnsupportedError, match="one dtype"):
        hsa_decode(q.double(), k, v, codes, table, lengths, scale, config)
    with pytest.raises(ValueError, match="flat"):
        hsa_decode(q, k, v, codes, table.flatten(), lengths, scale, config)
    if has_triton():
        with pytest.raises(UnsupportedError, match="tokens of a sequence"):
            HSAWorkspace(1, 2, 1, 64, 1 << 21, config, DTYPE, DEVICE)
        with pytest.raises(UnsupportedError, match="query heads"):
            HSAWorkspace(1, 80, 1, 64, 1 << 10, config, DTYPE, DEVICE)
    if runs_triton(q):
        other = HSAWorkspace(1, 2, 1, 64, 320, dataclasses.replace(config, budget=448), DTYPE, DEVICE)
        with pytest.raises(ValueError, match="workspace"):
            hsa_decode(*c.args(), workspace=other)
