"""`moe_forward` by every backend against the specification: any routing table, gradients, unused entries, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.errors import UnsupportedError
from stille.kernels.experts import moe_forward
from stille.kernels.experts.grouped import grouped_forward
from stille.kernels.experts.matmul import outer_products, times_weights
from stille.kernels.experts.routes import find_routes

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
BACKENDS = ["auto", "grouped", "triton"] + (["cpu"] if DEVICE == "cpu" else [])


@st.composite
def tables(draw, most_tokens=6):
    """Number of experts, and a routing table: distinct experts in a row, entries that are not used anywhere."""
    experts = draw(st.integers(1, 6))
    columns = draw(st.integers(1, experts + 2))
    rows = draw(
        st.lists(
            st.lists(st.integers(0, experts - 1), unique=True, max_size=min(columns, experts)).flatmap(
                lambda used: st.permutations(used + [experts] * (columns - len(used)))
            ),
            min_size=1,
            max_size=most_tokens,
        )
    )
    return experts, torch.tensor(rows)


def random_table(tokens, experts, columns, seed=0):
    random = torch.Generator().manual_seed(seed)
    order = torch.rand(tokens, experts, generator=random).argsort(1)[:, :columns]
    return torch.where(torch.rand(order.shape, generator=random) < 0.4, order, experts)


def inputs(expert_TK, experts, width=24, inner=10, dtype=torch.float32, seed=0):
    """x, table, weights (NaN where not used) and experts."""
    random = torch.Generator().manual_seed(seed)

    def randn(*shape, scale=1.0):
        return (torch.randn(*shape, generator=random) * scale).to(dtype).to(DEVICE)

    weight_TK = torch.rand(expert_TK.shape, generator=random).to(dtype).to(DEVICE)
    expert_TK = expert_TK.to(DEVICE)
    weight_TK = weight_TK.masked_fill(expert_TK == experts, float("nan"))
    return (
        randn(expert_TK.shape[0], width),
        expert_TK,
        weight_TK,
        randn(experts, 2 * inner, width, scale=width**-0.5),
        randn(experts, width, inner, scale=inner**-0.5),
    )


def dense(x, expert_TK, weight_TK, gate_up_proj, down_proj):
    """Every expert on every token, then the sum: no code in common with any backend."""
    experts, _, inner = down_proj.shape
    on_TKE = torch.nn.functional.one_hot(expert_TK.long(), experts + 1)[..., :experts]
    share_TE = torch.where(on_TKE.bool(), weight_TK[..., None], 0.0).sum(1).to(x.dtype)
    hidden_ETJ = torch.einsum("tc,ejc->etj", x, gate_up_proj)
    gate_ETI, up_ETI = hidden_ETJ[..., :inner], hidden_ETJ[..., inner:]
    return torch.einsum("te,eti,eci->tc", share_TE, gate_ETI * torch.sigmoid(gate_ETI) * up_ETI, down_proj)


def check(got, want, dtype):
    assert got.shape == want.shape
    assert got.dtype == dtype
    assert not got.isnan().any()
    assert (got.double() - want.double()).norm() <= TOLERANCE[dtype] * want.double().norm()


def leaves(tensors, dtype=None):
    x, expert, weight, gate_up, down = tensors
    made = [t.detach().clone().to(dtype or t.dtype).requires_grad_() for t in (x, weight, gate_up, down)]
    return made[0], expert, *made[1:]


def gradients(forward, tensors, d_out):
    tensors = leaves(tensors)
    forward(*tensors).backward(d_out)
    return [tensors[i].grad for i in (0, 2, 3, 4)]


@settings(max_examples=12, deadline=None)
@given(tables(4))
def test_every_backend_computes_the_sum_over_used_entries(table):
    experts, expert_TK = table
    case = inputs(expert_TK, experts)
    want = dense(*(t.double() if t.is_floating_point() else t for t in case))
    for backend in ["reference", *BACKENDS]:
        got = moe_forward(*case, backend=backend)
        check(got, want, torch.float32)
        assert torch.equal(got[(case[1] == experts).all(1)].abs().sum(), torch.zeros((), device=DEVICE))


@settings(max_examples=8, deadline=None)
@given(tables(3), st.randoms(use_true_random=False))
def test_order_of_columns_is_of_no_account(table, random):
    experts, expert_TK = table
    x, expert, weight, gate_up, down = inputs(expert_TK, experts)
    order = torch.tensor(random.sample(range(expert.shape[1]), expert.shape[1]), device=DEVICE)
    for backend in BACKENDS:
        want = moe_forward(x, expert, weight, gate_up, down, backend=backend)
        got = moe_forward(x, expert[:, order], weight[:, order], gate_up, down, backend=backend)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(tables())
def test_gradients_equal_those_of_the_sum_in_float64(table):
    experts, expert_TK = table
    case = inputs(expert_TK, experts, width=8, inner=5, dtype=torch.float64)
    d_out = torch.randn(case[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    unused = case[1] == experts
    clean = (case[0], case[1], case[2].masked_fill(unused, 0.0), *case[3:])  # NaN has no gradient in a dense sum
    want = gradients(dense, clean, d_out)
    for backend in ("reference", "grouped", "auto"):
        got = gradients(lambda *t, b=backend: moe_forward(*t, backend=b), case, d_out)
        for mine, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
        assert not got[1][unused].any()


@pytest.mark.parametrize(("width", "inner"), [(24, 10), (72, 48), (40, 3)])
def test_row_kernels_with_gradients(width, inner, monkeypatch):
    """Triton between the products, with room for unused pairs that holds NaN until it is written."""
    expert_TK = random_table(9, 5, 5)
    expert_TK[:, 1:][expert_TK[:, 1:] == 2] = 5  # few rows
    expert_TK[expert_TK == 3] = 5  # an idle expert
    case = inputs(expert_TK, 5, width, inner)
    d_out = torch.randn(9, width, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    want = dense(*(t.double() if t.is_floating_point() else t for t in case))
    want_gradients = gradients(lambda *t: moe_forward(*t, backend="reference"), case, d_out)

    def find(expert_TK, experts, on_host):
        return find_routes(expert_TK, experts, on_host=False)

    monkeypatch.setattr("stille.kernels.experts.grouped.find_routes", find)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new tensors with NaN
    try:
        got = grouped_forward(*case, row_kernels=True)
        got_gradients = gradients(lambda *t: grouped_forward(*t, row_kernels=True), case, d_out)
    finally:
        torch.use_deterministic_algorithms(before)
    check(got, want, torch.float32)
    for mine, theirs in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 70])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes(dtype, tokens, backend):
    if tokens == 70 and backend == "triton" and DEVICE == "cpu":
        tokens = 2  # the interpreter is slow
    case = inputs(random_table(tokens, 4, 4, seed=3), 4, 40, 24, dtype=dtype)
    check(moe_forward(*case, backend=backend), dense(*(t.double() if i != 1 else t for i, t in enumerate(case))), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_half_precision_gradients_are_near(dtype):
    case = inputs(random_table(70, 6, 6), 6, 48, 24, dtype=dtype)
    d_out = torch.randn(70, 48, generator=torch.Generator().manual_seed(1)).to(dtype).to(DEVICE)
    wide = tuple(t.double() if i != 1 else t for i, t in enumerate(case))
    want = gradients(lambda *t: moe_forward(*t, backend="reference"), wide, d_out.double())
    for mine, theirs in zip(gradients(moe_forward, case, d_out), want, strict=True):
        check(mine, theirs, dtype)


def test_weights_may_be_wider_than_tokens():
    x, expert, weight, gate_up, down = inputs(random_table(5, 4, 4), 4, 40, 24, dtype=torch.bfloat16)
    wide = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    want = dense(x.double(), expert, wide.double(), gate_up.double(), down.double())
    for backend in BACKENDS:
        check(moe_forward(x, expert, wide, gate_up, down, backend=backend), want, torch.bfloat16)
    wide.requires_grad_()
    moe_forward(x, expert, wide, gate_up, down).sum().backward()
    assert wide.grad is not None
    assert wide.grad.dtype == torch.float32


def test_only_what_is_trained_gets_a_gradient():
    case = inputs(random_table(6, 4, 4), 4)
    x = case[0].clone().requires_grad_()
    moe_forward(x, *case[1:]).square().sum().backward()
    want = leaves(case)
    moe_forward(*want).square().sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, want[0].grad)
    assert all(t.grad is None for t in case)


def test_autocast_computes_in_its_dtype_and_trains_master_weights():
    case = leaves(inputs(random_table(6, 4, 4), 4, dtype=torch.float32))
    with torch.autocast(DEVICE, torch.bfloat16):
        out = moe_forward(*case)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert case[3].grad is not None
    assert case[3].grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize(("tokens", "columns"), [(0, 3), (4, 0), (0, 0)])
def test_nothing_to_do(backend, tokens, columns):
    case = inputs(torch.zeros(tokens, columns, dtype=torch.long), 3)
    assert torch.equal(moe_forward(*case, backend=backend), torch.zeros(tokens, 24, device=DEVICE))
    assert torch.equal(moe_forward(*case, plus_TC=case[0], backend=backend), case[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 70])
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_plus_is_added(backend, tokens, dtype):
    """To tokens without experts too; what is given stays as it is, and may be strided."""
    if tokens == 70 and backend == "triton" and DEVICE == "cpu":
        tokens = 2  # the interpreter is slow
    table = random_table(tokens, 4, 4, seed=3)
    for expert_TK in (table, torch.full_like(table, 4)):
        case = inputs(expert_TK, 4, 40, 24, dtype=dtype)
        plus = torch.randn(40, tokens, generator=torch.Generator().manual_seed(5)).to(dtype).to(DEVICE).T
        before = plus.clone()
        got = moe_forward(*case, plus_TC=plus, backend=backend)
        check(got, dense(*(t.double() if i != 1 else t for i, t in enumerate(case))) + plus.double(), dtype)
        assert got.data_ptr() != plus.data_ptr()
        assert torch.equal(plus, before)


@pytest.mark.parametrize("row_kernels", [True, False])
def test_plus_between_products_by_kernels_and_without(row_kernels):
    case = inputs(random_table(9, 5, 5), 5, 72, 10)
    plus = torch.randn(9, 72, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    got = grouped_forward(*case, plus_TC=plus, row_kernels=row_kernels)
    check(got, dense(*(t.double() if i != 1 else t for i, t in enumerate(case))) + plus.double(), torch.float32)


@pytest.mark.parametrize("backend", ["reference", "grouped", "auto"])
def test_gradients_with_plus(backend):
    case = inputs(random_table(6, 4, 4), 4)
    plus = torch.randn(6, 24, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    d_out = torch.randn(6, 24, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    want = gradients(lambda *t: moe_forward(*t, backend=backend), case, d_out)
    plus.requires_grad_()
    got = gradients(lambda *t: moe_forward(*t, plus_TC=plus, backend=backend), case, d_out)
    for mine, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(mine, wanted)
    assert plus.grad is not None
    assert torch.equal(plus.grad, d_out)
    (alone,) = torch.autograd.grad(moe_forward(*case, plus_TC=plus, backend=backend), plus, d_out)
    assert torch.equal(alone, d_out)


def test_plus_below_autocast():
    case = leaves(inputs(random_table(6, 4, 4), 4))
    plus = torch.zeros(6, 24, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = moe_forward(*case, plus_TC=plus)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert plus.grad is not None
    assert plus.grad.dtype == torch.float32


def test_gradients_where_no_expert_runs():
    case = inputs(torch.full((3, 2), 4), 4)
    for grad in gradients(moe_forward, case, torch.ones(3, 24, device=DEVICE)):
        assert grad is not None
        assert not grad.any()


@settings(max_examples=25, deadline=None)
@given(tables())
def test_routes_list_every_used_pair_once_by_expert(table):
    experts, expert_TK = table
    routes = find_routes(expert_TK, experts, on_host=True)
    used = (expert_TK < experts).flatten()
    assert sorted(routes.order_R.tolist()) == used.nonzero().flatten().tolist()
    by_row = expert_TK.flatten()[routes.order_R].tolist()
    assert by_row == sorted(by_row)
    assert routes.ends == [sum(e <= limit for e in by_row) for limit in range(experts)]
    assert torch.equal(routes.row_TK.flatten()[routes.order_R], torch.arange(routes.rows, dtype=torch.int32))
    assert bool((routes.row_TK.flatten()[~used] >= routes.rows).all())


@st.composite
def any_tables(draw):
    """Number of experts, and integers from 0 to it: experts without pairs, all alike, none used, nothing at all."""
    experts = draw(st.sampled_from([1, 2, 5, 16, 17, 40, 256]))
    tokens, columns = draw(st.integers(0, 12)), draw(st.integers(0, 5))
    few = draw(st.lists(st.integers(0, experts), min_size=1, max_size=4))
    entry = draw(st.sampled_from([st.integers(0, experts), st.sampled_from(few), st.just(experts)]))
    row = st.lists(entry, min_size=columns, max_size=columns)
    rows = draw(st.lists(row, min_size=tokens, max_size=tokens))
    dtype = draw(st.sampled_from([torch.int64, torch.int32, torch.int16]))
    return experts, torch.tensor(rows, dtype=dtype).reshape(tokens, columns)


def by_sort(expert_TK):
    """Order of pairs, and its inverse."""
    order_P = torch.sort(expert_TK.flatten(), stable=True).indices
    row_P = torch.empty_like(order_P, dtype=torch.int32)
    row_P[order_P] = torch.arange(len(order_P), dtype=torch.int32, device=order_P.device)
    return order_P, row_P


def check_sorted(got, expert_TK, experts):
    ends_E = torch.bincount(expert_TK.flatten().long(), minlength=experts)[:experts].cumsum(0).to(torch.int32)
    for mine, wanted in zip(got, (*by_sort(expert_TK), ends_E), strict=True):
        assert torch.equal(mine, wanted)
        assert mine.dtype == wanted.dtype


@settings(max_examples=40, deadline=None)
@given(any_tables(), st.sampled_from([(2**13, 256), (256, 256), (256, 2), (1024, 3)]))
def test_counting_gives_what_a_stable_sort_gives(table, tiles):
    """For tiles of any number of pairs, several for each program, and counts of more programs than a tile holds."""
    from stille.kernels.experts.triton_routes import sort_pairs

    experts, expert_TK = table[0], table[1].to(DEVICE)
    tile, programs = max(tiles[0], 256 if experts == 256 else 0), tiles[1]
    check_sorted(sort_pairs(expert_TK, experts, tile=tile, most_programs=programs), expert_TK, experts)


@pytest.mark.parametrize(("experts", "tokens", "columns"), [(16, 200, 16), (64, 300, 8), (5, 1100, 1)])
def test_counting_in_its_own_tiles(experts, tokens, columns):
    from stille.kernels.experts.triton_routes import sort_pairs

    expert_TK = random_table(tokens, experts, columns).to(DEVICE)
    check_sorted(sort_pairs(expert_TK, experts), expert_TK, experts)
    strided = expert_TK.T.contiguous().T
    check_sorted(sort_pairs(strided, experts), expert_TK, experts)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="too many for the interpreter")
@pytest.mark.parametrize("experts", [1, 8, 16, 31, 64, 128, 256])
@pytest.mark.parametrize(("tokens", "columns"), [(8192, 16), (8192, 8), (40_001, 7), (3, 2)])
def test_counting_many_pairs_on_a_gpu(experts, tokens, columns):
    from stille.kernels.experts.triton_routes import sort_pairs

    random = torch.Generator(DEVICE).manual_seed(0)
    expert_TK = torch.randint(0, experts + 1, (tokens, columns), generator=random, device=DEVICE)
    check_sorted(sort_pairs(expert_TK, experts), expert_TK, experts)


@pytest.mark.parametrize("experts", [256, 300])
def test_routes_without_the_host_for_many_experts(experts):
    expert_TK = random_table(20, experts, 3)
    want = find_routes(expert_TK, experts, on_host=True)
    got = find_routes(expert_TK.to(DEVICE), experts, on_host=False)
    assert got.ends is None
    assert got.host_ends() == want.ends
    assert torch.equal(got.order_R[: want.rows].cpu(), want.order_R)
    assert torch.equal(got.row_TK.cpu(), want.row_TK)


def test_idle_experts_get_zeros():
    from stille.kernels.experts.triton_rows import clear_idle

    routes = find_routes(torch.tensor([[1, 4], [3, 1]], device=DEVICE), 4, on_host=False)
    sums = torch.full((4, 33, 40), float("nan"), device=DEVICE)
    sums[[1, 3]] = 7
    clear_idle(sums, routes)
    assert not sums[[0, 2]].any()
    assert bool((sums[[1, 3]] == 7).all())


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="torch's grouped GEMM without the host is a GPU's")
def test_library_products_with_idle_experts_on_a_gpu():
    expert_TK = torch.tensor([[1, 4], [3, 1], [4, 4]], device=DEVICE)
    routes = find_routes(expert_TK, 4, on_host=False)
    a, b = (torch.randn(6, n, device=DEVICE, dtype=torch.bfloat16) for n in (16, 24))
    w = torch.randn(4, 16, 24, device=DEVICE, dtype=torch.bfloat16)
    torch.testing.assert_close(times_weights(a, w, routes)[:2], a[:2] @ w[1], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(times_weights(a, w, routes)[2:3], a[2:3] @ w[3], rtol=2e-2, atol=2e-2)
    torch.empty(4, 16, 24, device=DEVICE, dtype=torch.bfloat16).fill_(float("nan"))  # what is freed is found again
    sums = outer_products(a, b, routes)
    torch.testing.assert_close(sums[1], a[:2].t() @ b[:2], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(sums[3], a[2:3].t() @ b[2:3], rtol=2e-2, atol=2e-2)
    assert not sums[0].any()
    assert not sums[2].any()


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("backend", "tokens"), [("triton", 4), ("auto", 40)])
def test_a_graph_follows_the_table(backend, tokens, dtype):
    """Captured with one table, replayed with another that has more experts."""
    case = inputs(random_table(tokens, 8, 8), 8, 64, 32, dtype=dtype)
    moe_forward(*case, backend=backend)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = moe_forward(*case, backend=backend)
    case[1].copy_(torch.arange(8, device=DEVICE).expand(tokens, 8))
    case[2].fill_(0.5)
    graph.replay()
    check(out, dense(*(t.double() if i != 1 else t for i, t in enumerate(case))), dtype)


def good():
    return list(inputs(random_table(3, 4, 2), 4))


@pytest.mark.parametrize(
    ("index", "change", "error", "message"),
    [
        (0, lambda t: t[None], ValueError, "x \\[T, C\\]"),
        (0, lambda t: t[:, :-1], ValueError, "C = 23"),
        (0, lambda t: t[:-1], ValueError, "one row for each of the 2 tokens"),
        (0, lambda t: t.double(), UnsupportedError, "one dtype"),
        (0, lambda t: t.long(), UnsupportedError, "floating point"),
        (1, lambda t: t[:, :-1], ValueError, "expert and weight"),
        (1, lambda t: t.float(), UnsupportedError, "expected integers"),
        (2, lambda t: t.long(), UnsupportedError, "floating point"),
        (3, lambda t: t[:, :-1], ValueError, "gate_up_proj \\[E, 2I, C\\]"),
        (3, lambda t: t[:-1], ValueError, "gate_up_proj \\[E, 2I, C\\]"),
        (4, lambda t: t.transpose(1, 2), ValueError, "down_proj \\[E, C, I\\]"),
        (4, lambda t: t.to("meta"), ValueError, "one device"),
    ],
)
def test_bad_tensors_are_refused(index, change, error, message):
    case = good()
    case[index] = change(case[index])
    with pytest.raises(error, match=message):
        moe_forward(*case)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t[:-1], ValueError, "expected the shape of x"),
        (lambda t: t.double(), UnsupportedError, "expected the dtype of x"),
        (lambda t: t.to("meta"), ValueError, "one device"),
    ],
)
def test_bad_plus_is_refused(change, error, message):
    case = good()
    with pytest.raises(error, match=message):
        moe_forward(*case, plus_TC=change(case[0]))


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU it would mean to wait")
@pytest.mark.parametrize("entry", [-1, 5])
@pytest.mark.parametrize("backend", ["auto", "reference", "triton"])
def test_entries_beyond_the_experts_are_refused(entry, backend):
    case = good()
    case[1][1, 0] = entry
    with pytest.raises(ValueError, match="0 to 3, or 4 for not used"):
        moe_forward(*case, backend=backend)


def test_bad_backends_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="reference, grouped"):
        moe_forward(*good(), backend="fast")  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="no gradients"):
        moe_forward(*leaves(good()), backend="triton")
    with pytest.raises(UnsupportedError, match="no gradients"):
        moe_forward(*good(), plus_TC=good()[0].requires_grad_(), backend="triton")
    wide = [t.double() if t.is_floating_point() else t for t in good()]
    with pytest.raises(UnsupportedError, match="float64"):
        moe_forward(*wide, backend="triton")
    case = good()
    case[3] = case[3].transpose(1, 2).contiguous().transpose(1, 2)
    with pytest.raises(UnsupportedError, match="contiguous"):
        moe_forward(*case, backend="triton")
    if DEVICE == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "0")
        with pytest.raises(UnsupportedError, match="CUDA"):
            moe_forward(*good(), backend="triton")
