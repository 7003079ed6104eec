"""The two inner loops that do nearly all the arithmetic, emitted with their accumulators in registers.

`matmul_tile`: 16 output features x R rows of packed 4- or 8-bit weights times quantised activations.
`attend_tile`: R query vectors times one page of keys or values, a small float matrix product.

Both exist for a few row counts R; `matmul_rows` and `attend_rows` cover any number with them. A row's result never
depends on R or on its neighbours, bit for bit.

They are compiled once, as functions with a C interface, and the stages call them by address: inlined into every caller
they would take most of the compile time.
"""

import functools
from typing import Any, cast

from llvmlite import ir
from numba import cfunc, typeof, types

from stille.kernels.cpu.formats import (
    INT4_GROUP_BYTES,
    INT8_DATA_BYTES,
    INT8_SCALE_BYTES,
    X_GROUP_BYTES,
)
from stille.kernels.cpu.simd import (
    LANES,
    Target,
    TargetType,
    cached,
    carry_loop,
    const_f32,
    const_int,
    element_bytes,
    emit_dot4,
    emit_f16_to_f32,
    emit_load,
    emit_store,
    fma,
    intrinsic,
    offset,
    prefetch,
    splat,
)

_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32 = ir.FloatType()
_V_F32, _V_I32 = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_PREFETCH_BYTES = 4096  # how far ahead weights are requested: past the page where the hardware's own prefetch ends

_V_BYTES, _V_I16 = ir.VectorType(_I8, 4 * LANES), ir.VectorType(_I16, LANES)


def _int4_group(builder, isa, weights, group, x_rows, sums):
    """One group of 32 inputs of 4-bit weights, value = scale * q + minimum; see formats.pack_int4."""
    base = builder.add(weights, builder.mul(group, _I64(INT4_GROUP_BYTES)))
    for line in range(0, INT4_GROUP_BYTES, 64):
        prefetch(builder, offset(builder, base, _PREFETCH_BYTES + line))
    for j in range(4):
        both = emit_load(builder, offset(builder, base, 64 * j), _V_BYTES, 64)
        low = builder.and_(both, const_int(_I8, 15, 64))
        high = builder.lshr(both, const_int(_I8, 4, 64))
        for r, x in enumerate(x_rows):
            for quad, part in ((j, low), (j + 4, high)):
                x4 = emit_load(builder, offset(builder, x, 8 + 4 * quad), _I32)
                sums[r] = emit_dot4(builder, isa, sums[r], part, x4, wide=False)
    scale = emit_f16_to_f32(builder, emit_load(builder, offset(builder, base, 256), _V_I16, 32), isa)
    minimum = emit_f16_to_f32(builder, emit_load(builder, offset(builder, base, 288), _V_I16, 32), isa)
    return sums, scale, minimum


def _int8_group(builder, isa, weights, group, groups, x_rows, sums):
    """One group of 32 inputs of 8-bit weights, value = scale * (u - 128); see formats.pack_int8."""
    base = builder.add(weights, builder.mul(group, _I64(INT8_DATA_BYTES)))
    for line in range(0, INT8_DATA_BYTES, 64):
        prefetch(builder, offset(builder, base, _PREFETCH_BYTES + line))
    for quad in range(8):
        part = emit_load(builder, offset(builder, base, 64 * quad), _V_BYTES, 32)
        for r, x in enumerate(x_rows):
            x4 = emit_load(builder, offset(builder, x, 8 + 4 * quad), _I32)
            sums[r] = emit_dot4(builder, isa, sums[r], part, x4, wide=True)
    scales = builder.add(weights, builder.mul(groups, _I64(INT8_DATA_BYTES)))
    scales = builder.add(scales, builder.mul(group, _I64(INT8_SCALE_BYTES)))
    scale = emit_f16_to_f32(builder, emit_load(builder, scales, _V_I16, 32), isa)
    return sums, scale, builder.fmul(scale, const_f32(-128.0))


def _matmul_tile(kind: int, rows: int):
    """Intrinsic (target, weights, groups, x, x_stride, init, init_stride, out, out_stride) -> nothing.

    out[r, 0:16] = init[r, 0:16] + W[0:16, :] @ x[r, :] for r < rows; strides in bytes, init may be out.
    """
    arguments = (types.int64,) * 8

    def codegen(context, builder, signature, values):
        isa = signature.args[0].isa
        weights, groups, x, x_stride, init, init_stride, out, out_stride = values[1:]
        row = lambda base, stride, r: builder.add(base, builder.mul(stride, _I64(r))) if r else base  # noqa: E731
        xs = [row(x, x_stride, r) for r in range(rows)]
        start = [emit_load(builder, row(init, init_stride, r), _V_F32) for r in range(rows)]

        def body(group, totals):
            shift = builder.mul(group, _I64(X_GROUP_BYTES))
            x_rows = [builder.add(x, shift) for x in xs]
            zero = [const_int(_I32, 0, LANES)] * rows
            if kind == 4:
                sums, scale, minimum = _int4_group(builder, isa, weights, group, x_rows, zero)
            else:
                sums, scale, minimum = _int8_group(builder, isa, weights, group, groups, x_rows, zero)
            new = []
            for total, acc, xr in zip(totals, sums, x_rows, strict=True):
                x_scale = splat(builder, emit_load(builder, xr, _F32))
                x_sum = splat(builder, emit_load(builder, offset(builder, xr, 4), _F32))
                total = fma(builder, builder.sitofp(acc, _V_F32), builder.fmul(scale, x_scale), total)
                new.append(fma(builder, minimum, x_sum, total))
            return new

        totals = carry_loop(builder, groups, start, body)
        for r, total in enumerate(totals):
            emit_store(builder, total, row(out, out_stride, r))
        return context.get_dummy_value()

    def typer(typingctx, target, weights, groups, x, x_stride, init, init_stride, out, out_stride):
        return (types.void(target, *arguments), codegen) if isinstance(target, TargetType) else None

    return intrinsic(typer)


_int4_1, _int4_2, _int4_4, _int4_8 = (_matmul_tile(4, rows) for rows in (1, 2, 4, 8))
_int8_1, _int8_2, _int8_4, _int8_8 = (_matmul_tile(8, rows) for rows in (1, 2, 4, 8))


@intrinsic
def _is_wide(typingctx, target):
    """Whether the target has registers for more than two rows; a constant, so the other branch is never compiled."""
    wide = target.isa == "avx512vnni"
    return types.boolean(target), lambda context, builder, signature, values: ir.IntType(1)(int(wide))


def _matmul_rows(target, kind, weights, groups, rows, x, x_stride, init, init_stride, out, out_stride):
    """One block of 16 output features for any number of rows.

    Args:
        kind: 4 or 8, the packing of `weights` (one block, address).
        groups: input features / 32.
        x, x_stride: quantised activations (rows of blocks written by `quantize_store`) and bytes between rows.
        init, init_stride: float rows of 16 to start from (bias, residual or zeros; stride 0 repeats one row).
        out, out_stride: float rows of 16 to write.
    """
    r = 0
    if _is_wide(target):
        while rows - r >= 8:
            if kind == 4:
                _int4_8(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)
            else:
                _int8_8(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)
            x, init, out, r = x + 8 * x_stride, init + 8 * init_stride, out + 8 * out_stride, r + 8
        if rows - r >= 4:
            if kind == 4:
                _int4_4(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)
            else:
                _int8_4(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)
            x, init, out, r = x + 4 * x_stride, init + 4 * init_stride, out + 4 * out_stride, r + 4
    while rows - r >= 2:
        if kind == 4:
            _int4_2(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)
        else:
            _int8_2(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)
        x, init, out, r = x + 2 * x_stride, init + 2 * init_stride, out + 2 * out_stride, r + 2
    if r < rows:
        if kind == 4:
            _int4_1(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)
        else:
            _int8_1(target, weights, groups, x, x_stride, init, init_stride, out, out_stride)


def _attend_tile(vectors: int, rows: int):
    """Intrinsic (target, a, a_stride, depth, b, b_stride, alpha, c, c_stride) -> nothing.

    c[r, :] = alpha[r] * c[r, :] + sum_k a[r, k] * b[k, :] over 16*vectors columns; a, c, alpha float32, b cache
    elements; strides in bytes.
    """
    arguments = (types.int64,) * 8

    def codegen(context, builder, signature, values):
        target = signature.args[0]
        a, a_stride, depth, b, b_stride, alpha, c, c_stride = values[1:]
        width = 2 if target.kv == "f16" else 4
        strip = vectors if target.isa == "avx512vnni" else min(vectors, 2)
        row = lambda base, stride, r: builder.add(base, builder.mul(stride, _I64(r))) if r else base  # noqa: E731
        for first in range(0, vectors, strip):
            columns = range(first, first + strip)
            starts = []
            for r in range(rows):
                keep = splat(builder, emit_load(builder, offset(builder, alpha, 4 * r), _F32))
                for v in columns:
                    old = emit_load(builder, offset(builder, row(c, c_stride, r), 64 * v), _V_F32)
                    starts.append(builder.fmul(old, keep))

            def body(k, sums, columns=columns):
                line = builder.add(b, builder.mul(k, b_stride))
                loaded = []
                for v in columns:
                    place = offset(builder, line, LANES * width * v)
                    if target.kv == "f16":
                        loaded.append(emit_f16_to_f32(builder, emit_load(builder, place, _V_I16, 2), target.isa))
                    else:
                        loaded.append(emit_load(builder, place, _V_F32))
                shift = builder.shl(k, _I64(2))
                new = []
                for r in range(rows):
                    factor = splat(builder, emit_load(builder, builder.add(row(a, a_stride, r), shift), _F32))
                    new += [fma(builder, factor, v, sums[r * len(loaded) + i]) for i, v in enumerate(loaded)]
                return new

            sums = carry_loop(builder, depth, starts, body)
            for r in range(rows):
                for i, v in enumerate(columns):
                    emit_store(builder, sums[r * strip + i], offset(builder, row(c, c_stride, r), 64 * v))
        return context.get_dummy_value()

    def typer(typingctx, target, a, a_stride, depth, b, b_stride, alpha, c, c_stride):
        return (types.void(target, *arguments), codegen) if isinstance(target, TargetType) else None

    return intrinsic(typer)


_page_1, _page_2, _page_3, _page_6 = (_attend_tile(4, rows) for rows in (1, 2, 3, 6))
_strip_1, _strip_2, _strip_3, _strip_6 = (_attend_tile(1, rows) for rows in (1, 2, 3, 6))


def _attend_rows(target, rows, columns, a, a_stride, depth, b, b_stride, alpha, c, c_stride):
    """c[rows, columns] = alpha * c + a[rows, depth] @ b[depth, columns]; b holds cache elements.

    `columns` is a multiple of 16; strides in bytes; `alpha` float32[rows].
    """
    first = 0
    while first < columns:
        whole = columns - first >= 64
        r, ar, cr = 0, a, c
        while r < rows:
            n = rows - r
            if whole:
                if n >= 6:
                    _page_6(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
                    n = 6
                elif n >= 3:
                    _page_3(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
                    n = 3
                elif n == 2:
                    _page_2(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
                else:
                    _page_1(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
            elif n >= 6:
                _strip_6(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
                n = 6
            elif n >= 3:
                _strip_3(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
                n = 3
            elif n == 2:
                _strip_2(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
            else:
                _strip_1(target, ar, a_stride, depth, b, b_stride, alpha + 4 * r, cr, c_stride)
            r, ar, cr = r + n, ar + n * a_stride, cr + n * c_stride
        step = 64 if whole else 16
        first, b, c = first + step, b + step * element_bytes(target), c + 4 * step


@functools.cache
def kernels(isa: str, kv: str) -> tuple[Any, Any]:
    """The compiled pair (matmul_rows, attend_rows) of a target; `.address` is what `call_kernel` takes."""
    signature = types.void(typeof(Target(isa, kv)), *(types.int64,) * 10)
    compiled = functools.partial(cast(Any, cfunc), signature, nopython=True, error_model="numpy")
    matmul = cached(lambda cache: compiled(cache=cache)(_matmul_rows))
    return matmul, cached(lambda cache: compiled(cache=cache)(_attend_rows))


@intrinsic
def call_kernel(typingctx, address, a0, a1, a2, a3, a4, a5, a6, a7, a8, a9):
    """Call a function of `kernels`; the arguments are its, without the target."""

    def codegen(context, builder, signature, values):
        tag = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [tag] + [_I64] * 10)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), [ir.Constant(tag, None), *values[1:]])
        return context.get_dummy_value()

    return types.void(*(types.int64,) * 11), codegen
