"""The parts of a decoder layer as work items: each function computes one item of one stage, on one thread.

Items of a stage are independent; stages run in order (`team.py`). A row's numbers do not depend on which other rows
are in the step, on how rows are tiled or on the number of threads: every sum has one fixed order.

Names: T rows of the step, C hidden size, I intermediate size, D head width. Addresses are integers, see `job.py`.
"""

import math

from stille.kernels.cpu import job as J
from stille.kernels.cpu.formats import BLOCK, INT4_GROUP_BYTES, INT8_DATA_BYTES, INT8_SCALE_BYTES, X_GROUP_BYTES
from stille.kernels.cpu.simd import (
    add,
    broadcast,
    element_bytes,
    field,
    inner,
    load,
    load_f32,
    load_i32,
    mul,
    mul_add,
    quantize_store,
    scatter_elements,
    store,
    store_elements,
    store_f32,
    sub,
    sum_lanes,
    swiglu,
    unpack_quad,
)
from stille.kernels.cpu.tiles import call_kernel
from stille.kernels.grids import GROUP


@inner
def block_bytes(bits, groups):
    """Distance between blocks of 16 output features (formats.block_bytes)."""
    if bits == 4:
        return groups * INT4_GROUP_BYTES
    return (groups * (INT8_DATA_BYTES + INT8_SCALE_BYTES) + 63) // 64 * 64


@inner
def _mean_square_inverse(x, width, eps):
    total = broadcast(0.0)
    for i in range(0, width, 16):
        v = load(x + 4 * i)
        total = mul_add(v, v, total)
    return 1.0 / math.sqrt(sum_lanes(total) / width + eps)


@inner
def norm_row(x, gain, width, eps, out):
    """RMSNorm of one row, quantised for the next projection."""
    factor = broadcast(_mean_square_inverse(x, width, eps))
    for g in range(width // GROUP):
        p, q = x + 128 * g, gain + 128 * g
        a = mul(mul(load(p), factor), load(q))
        b = mul(mul(load(p + 64), factor), load(q + 64))
        quantize_store(out + X_GROUP_BYTES * g, a, b)


@inner
def quantize_row(x, width, out):
    """Quantise one row for the next projection."""
    for g in range(width // GROUP):
        quantize_store(out + X_GROUP_BYTES * g, load(x + 128 * g), load(x + 128 * g + 64))


@inner
def embed_row(target, job, row):
    """STREAM[row] = embedding of the row's token."""
    width = field(job, J.HIDDEN)
    token = load_i32(field(job, J.IDS) + 4 * row)
    groups = width // GROUP
    block = field(job, J.EMBEDDING) + token // BLOCK * block_bytes(8, groups)
    lane = token % BLOCK
    out = field(job, J.STREAM) + 4 * width * row
    for g in range(groups):
        scale = block + groups * INT8_DATA_BYTES + g * INT8_SCALE_BYTES + 2 * lane
        for quad in range(8):
            data = block + g * INT8_DATA_BYTES + 64 * quad + 4 * lane
            unpack_quad(target, data, scale, out + 128 * g + 16 * quad)


@inner
def _head_norm(x, gain, width, eps):
    factor = broadcast(_mean_square_inverse(x, width, eps))
    for i in range(0, width, 16):
        store(x + 4 * i, mul(mul(load(x + 4 * i), factor), load(gain + 4 * i)))


@inner
def _rotate(x, cos, sin, width):
    """Rotary embedding in place: dimension d with d + width/2."""
    half = width // 2
    whole = half // 16 * 16
    for i in range(0, whole, 16):
        a, b = load(x + 4 * i), load(x + 4 * (half + i))
        c, s = load(cos + 4 * i), load(sin + 4 * i)
        store(x + 4 * i, sub(mul(a, c), mul(b, s)))
        store(x + 4 * (half + i), add(mul(b, c), mul(a, s)))
    for i in range(whole, half):
        a1, b1 = load_f32(x + 4 * i), load_f32(x + 4 * (half + i))
        c1, s1 = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store_f32(x + 4 * i, a1 * c1 - b1 * s1)
        store_f32(x + 4 * (half + i), b1 * c1 + a1 * s1)


@inner
def qkv_item(target, job, layer, item):
    """One head of q, k or v for a tile of rows: projection, head norm, rotation; k and v go to their pages."""
    heads, kv_heads, dim = field(job, J.HEADS), field(job, J.KV_HEADS), field(job, J.HEAD_DIM)
    groups, bits = field(job, J.HIDDEN) // GROUP, field(job, J.BITS)
    all_heads = heads + 2 * kv_heads
    head, first = item % all_heads, item // all_heads * J.ROW_TILE
    rows = min(J.ROW_TILE, field(job, J.ROWS) - first)
    x_stride, stride = groups * X_GROUP_BYTES, 4 * dim * all_heads
    x = field(job, J.X) + first * x_stride
    out = field(job, J.QKV) + first * stride + 4 * dim * head
    weight = field(layer, J.QKV_WEIGHT) + head * (dim // BLOCK) * block_bytes(bits, groups)
    bias = field(layer, J.QKV_BIAS)
    matmul = field(job, J.MATMUL)
    for b in range(dim // BLOCK):
        init = field(job, J.ZEROS)
        if bias != 0:
            init = bias + 4 * (dim * head + BLOCK * b)
        tile = weight + b * block_bytes(bits, groups)
        call_kernel(matmul, bits, tile, groups, rows, x, x_stride, init, 0, out + 64 * b, stride)

    constants = field(job, J.CONSTANTS)
    eps, scale = load_f32(constants), broadcast(load_f32(constants + 4))
    is_query, is_key = head < heads, heads <= head < heads + kv_heads
    gain = 0
    if is_query:
        gain = field(layer, J.Q_NORM)
    elif is_key:
        gain = field(layer, J.K_NORM)
    size = element_bytes(target)
    for r in range(rows):
        line = out + r * stride
        position = load_i32(field(job, J.POSITIONS) + 4 * (first + r))
        page = load_i32(field(job, J.ROW_PAGES) + 4 * (first + r))
        slot = position % J.PAGE
        if gain != 0:
            _head_norm(line, gain, dim, eps)
        if is_query or is_key:
            _rotate(line, field(job, J.COS) + 4 * dim * position, field(job, J.SIN) + 4 * dim * position, dim)
        if is_query:
            for i in range(0, dim, 16):
                store(line + 4 * i, mul(load(line + 4 * i), scale))
        elif is_key:
            keys = field(layer, J.KEYS) + (page * kv_heads + head - heads) * dim * J.PAGE * size
            for i in range(0, dim, 16):
                scatter_elements(target, keys + (i * J.PAGE + slot) * size, J.PAGE * size, load(line + 4 * i))
        else:
            values = field(layer, J.VALUES) + (page * kv_heads + head - heads - kv_heads) * dim * J.PAGE * size
            for i in range(0, dim, 16):
                store_elements(target, values + (slot * dim + i) * size, load(line + 4 * i))


@inner
def residual_item(job, weight, x, inputs, item):
    """16 features for a tile of rows of a projection that adds to the residual stream."""
    width, bits = field(job, J.HIDDEN), field(job, J.BITS)
    blocks, groups = width // BLOCK, inputs // GROUP
    block, first = item % blocks, item // blocks * J.ROW_TILE
    rows = min(J.ROW_TILE, field(job, J.ROWS) - first)
    x_stride = groups * X_GROUP_BYTES
    stream = field(job, J.STREAM) + 4 * (first * width + BLOCK * block)
    tile = weight + block * block_bytes(bits, groups)
    matmul = field(job, J.MATMUL)
    call_kernel(matmul, bits, tile, groups, rows, x + first * x_stride, x_stride, stream, 4 * width, stream, 4 * width)


@inner
def gate_up_item(job, layer, item, scratch):
    """32 intermediate features for a tile of rows: both projections, silu(gate) * up, quantised."""
    inputs, width, bits = field(job, J.HIDDEN), field(layer, J.INNER), field(job, J.BITS)
    groups, parts = inputs // GROUP, width // GROUP
    part, first = item % parts, item // parts * J.ROW_TILE
    rows = min(J.ROW_TILE, field(job, J.ROWS) - first)
    x_stride = groups * X_GROUP_BYTES
    x, zeros, step = field(job, J.X) + first * x_stride, field(job, J.ZEROS), block_bytes(bits, groups)
    matmul = field(job, J.MATMUL)
    for b in range(2):
        gate = field(layer, J.GATE_WEIGHT) + (2 * part + b) * step
        up = field(layer, J.UP_WEIGHT) + (2 * part + b) * step
        call_kernel(matmul, bits, gate, groups, rows, x, x_stride, zeros, 0, scratch + 64 * b, 256)
        call_kernel(matmul, bits, up, groups, rows, x, x_stride, zeros, 0, scratch + 128 + 64 * b, 256)
    out_stride = parts * X_GROUP_BYTES
    out = field(job, J.X_ACTIVATED) + first * out_stride + part * X_GROUP_BYTES
    for r in range(rows):
        line = scratch + 256 * r
        a = swiglu(load(line), load(line + 128))
        b = swiglu(load(line + 64), load(line + 192))
        quantize_store(out + r * out_stride, a, b)


@inner
def head_item(job, item, per_item):
    """Logits of `per_item` blocks of 16 tokens for the selected rows."""
    groups, blocks = field(job, J.HIDDEN) // GROUP, field(job, J.HEAD_BLOCKS)
    step, x_stride, stride = block_bytes(8, groups), groups * X_GROUP_BYTES, 64 * blocks
    weight, logits, zeros = field(job, J.HEAD), field(job, J.LOGITS), field(job, J.ZEROS)
    x, rows = field(job, J.X_SELECTED), field(job, J.SELECTED_COUNT)
    matmul = field(job, J.MATMUL)
    for b in range(item * per_item, min(blocks, (item + 1) * per_item)):
        call_kernel(matmul, 8, weight + b * step, groups, rows, x, x_stride, zeros, 0, logits + 64 * b, stride)
