"""Vector building blocks for the CPU kernels: a 16-lane float type for numba and the instructions behind it.

numba has no vector types, so this module gives it one (`F32x16`) together with the loads, stores and
arithmetic that the kernels need, each emitted as LLVM vector code. LLVM splits 16 lanes into whatever the host
has (one AVX-512 register, two AVX ones, four NEON ones), so everything here is portable except the one
operation that decides the speed: the integer dot product `emit_dot4`, which has one form per instruction set.

Memory is addressed by plain 64-bit integers: kernels walk packed weights, pages and workspaces whose layout
`formats.py` and `program.py` define, and a single integer signature keeps compilation short.

Which instruction set is meant travels as the *type* of a tag argument (`Target`), so numba compiles and caches
one version of each function per target, and tests can ask for any variant that the host can run.
"""

import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import njit as _njit
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import NativeValue, register_model, typeof_impl, unbox
from numba.extending import intrinsic as _intrinsic

from stille.errors import ConfigError, UnsupportedError

logger = logging.getLogger(__name__)

LANES = 16
ISAS = ("avx512vnni", "avxvnni", "avx2", "generic")
KV_KINDS = ("f16", "f32")

_I8, _I16, _I32, _I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F32, _F16 = ir.FloatType(), ir.HalfType()
_V_F32, _V_I32 = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
_V_I8, _V_U8X64 = ir.VectorType(_I8, LANES), ir.VectorType(_I8, 4 * LANES)


# --------------------------------------------------------------------------- what the host can do


@functools.cache
def host_isas() -> tuple[str, ...]:
    """Instruction sets of `ISAS` that this host runs, best first."""
    features = llvm.get_host_cpu_features()
    found = []
    if features.get("avx512vnni") and features.get("avx512bw") and features.get("avx512vl"):
        found.append("avx512vnni")
    if features.get("avxvnni") and features.get("avx2"):
        found.append("avxvnni")
    if features.get("avx2") and features.get("fma") and features.get("f16c"):
        found.append("avx2")
    return (*found, "generic")


@functools.cache
def _build_id() -> str:
    """Hash of this folder's sources: numba's cache looks at one file only, this makes it look at all of them."""
    digest = hashlib.sha256(f"{numba.__version__}/{llvm.llvm_version_info}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class Target:
    """The instruction set and cache element type that a kernel is compiled for; a tag without run-time content.

    Args:
        isa: one of `ISAS`, or "auto" for the best that the host runs.
        kv: element type of the KV cache, "f16" or "f32", or "auto" for f16 where the host converts it.

    Raises:
        ConfigError: unknown name.
        UnsupportedError: the host does not run `isa`.
    """

    def __init__(self, isa: str = "auto", kv: str = "auto"):
        if isa == "auto":
            isa = host_isas()[0]
        if kv == "auto":
            kv = "f32" if isa == "generic" else "f16"
        if isa not in ISAS or kv not in KV_KINDS:
            raise ConfigError(f"CPU target ({isa!r}, {kv!r}): isa must be auto or one of {ISAS}, kv one of {KV_KINDS}")
        if isa not in host_isas():
            raise UnsupportedError(f"this host does not run {isa}; it runs {', '.join(host_isas())}")
        if isa == "generic" and kv == "f16":
            raise UnsupportedError("the generic kernels keep the KV cache in f32; ask for kv='f32'")
        self.isa, self.kv = isa, kv

    @property
    def max_rows(self) -> int:
        """Rows of activations that one weight tile is applied to in registers."""
        return 8 if self.isa == "avx512vnni" else 2

    def __repr__(self) -> str:
        return f"Target(isa={self.isa!r}, kv={self.kv!r})"


class TargetType(types.Opaque):
    """numba's view of `Target`: everything is in the type."""

    def __init__(self, isa: str, kv: str, build: str):
        self.isa, self.kv, self.build = isa, kv, build
        super().__init__(name=f"Target({isa},{kv},{build})")


register_model(TargetType)(models.OpaqueModel)


@typeof_impl.register(Target)
def _typeof_target(value, context):
    return TargetType(value.isa, value.kv, _build_id())


@unbox(TargetType)
def _unbox_target(typ, obj, c):
    return NativeValue(c.context.get_dummy_value())


# numba's decorators, untyped: they change signatures and take options in ways that type checkers cannot see.
intrinsic: Any = _intrinsic
njit: Any = _njit

inner: Any = njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Decorator of functions that only kernels call: no wrappers, no checks for division by zero."""


def entry(function):
    """Decorator of functions that Python calls: releases the GIL, keeps the machine code on disk where it can."""
    return cached(lambda cache: njit(cache=cache, nogil=True, error_model="numpy")(function))


def cached(compile_with):
    """compile_with(cache=True), or without a cache where numba finds no folder to write to."""
    try:
        return compile_with(True)
    except RuntimeError as error:
        logger.warning("CPU kernels will be compiled at every start (set NUMBA_CACHE_DIR to avoid it): %s", error)
        return compile_with(False)


# --------------------------------------------------------------------------- emitters (plain llvmlite)


def pointer(builder, address, element):
    """Integer address -> pointer to `element`."""
    return builder.inttoptr(address, element.as_pointer())


def emit_load(builder, address, element, align=4):
    return builder.load(pointer(builder, address, element), align=align)


def emit_store(builder, value, address, align=4):
    builder.store(value, pointer(builder, address, value.type), align=align)


def offset(builder, address, amount: int):
    return builder.add(address, _I64(amount)) if amount else address


def splat(builder, scalar, count=LANES):
    kind = ir.VectorType(scalar.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(_I32, count), None))


def const_f32(value: float, count=LANES):
    return ir.Constant(ir.VectorType(_F32, count), [value] * count)


def const_int(element, value: int, count: int):
    return ir.Constant(ir.VectorType(element, count), [value] * count)


def call(builder, name: str, result, args):
    """Call the LLVM intrinsic `name`."""
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def fma(builder, a, b, c):
    """a*b+c, fused where the host fuses."""
    suffix = f"v{a.type.count}f32" if isinstance(a.type, ir.VectorType) else "f32"
    return call(builder, f"llvm.fmuladd.{suffix}", a.type, [a, b, c])


def maximum(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def halves(builder, v):
    """Lower and upper half of a vector."""
    n, undef = v.type.count, ir.Constant(v.type, ir.Undefined)
    mask = lambda start: ir.Constant(ir.VectorType(_I32, n // 2), list(range(start, start + n // 2)))  # noqa: E731
    return builder.shuffle_vector(v, undef, mask(0)), builder.shuffle_vector(v, undef, mask(n // 2))


def prefetch(builder, address):
    """Start loading the cache line of an address, which need not be mapped."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [pointer(builder, address, _I8), _I32(0), _I32(3), _I32(1)])


def reduce(builder, v, combine):
    """Tree reduction in a fixed order, so every caller gets the same bits."""
    while v.type.count > 1:
        v = combine(builder, *halves(builder, v))
    return builder.extract_element(v, _I32(0))


def emit_f16_to_f32(builder, bits, isa: str):
    """<n x i16> holding finite binary16 values -> <n x float>, exact."""
    n = bits.type.count
    wide_f, wide_i = ir.VectorType(_F32, n), ir.VectorType(_I32, n)
    if isa != "generic":
        return builder.fpext(builder.bitcast(bits, ir.VectorType(_F16, n)), wide_f)
    wide = builder.zext(bits, wide_i)  # no conversion instruction: move the fields, rescale the exponent
    magnitude = builder.shl(builder.and_(wide, const_int(_I32, 0x7FFF, n)), const_int(_I32, 13, n))
    value = builder.fmul(builder.bitcast(magnitude, wide_f), const_f32(2.0**112, n))
    sign = builder.shl(builder.and_(wide, const_int(_I32, 0x8000, n)), const_int(_I32, 16, n))
    return builder.bitcast(builder.or_(builder.bitcast(value, wide_i), sign), wide_f)


def emit_exp(builder, x):
    """exp(x) per lane to about 1e-7 relative, inputs clamped to [-87, 88]: 2^n times a minimax polynomial."""
    n = x.type.count
    c = lambda value: const_f32(value, n)  # noqa: E731
    x = maximum(builder, x, c(-87.0))
    x = builder.select(builder.fcmp_ordered("<", x, c(88.0)), x, c(88.0))
    magic = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer that sits in the low mantissa bits
    shifted = builder.fadd(builder.fmul(x, c(1.4426950408889634)), c(magic))
    whole = builder.fsub(shifted, c(magic))
    r = fma(builder, whole, c(-0.693359375), x)
    r = fma(builder, whole, c(2.12194440e-4), r)
    p = c(1.9875691500e-4)
    for k in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma(builder, p, r, c(k))
    p = builder.fadd(fma(builder, p, builder.fmul(r, r), r), c(1.0))
    ints = ir.VectorType(_I32, n)
    power = builder.sub(builder.bitcast(shifted, ints), const_int(_I32, 0x4B400000 - 127, n))
    return builder.fmul(p, builder.bitcast(builder.shl(power, const_int(_I32, 23, n)), x.type))


def emit_dot4(builder, isa: str, acc, weights, x4, wide: bool):
    """acc[lane] += sum_c weights[4*lane + c] * x4[c]: the four-way integer dot product.

    Args:
        acc: <16 x i32>.
        weights: <64 x i8>, unsigned.
        x4: i32 whose four bytes are signed activations in [-127, 127].
        wide: weights may exceed 127 (matters where products are summed in 16 bits).
    """
    if isa == "avx512vnni":
        return _vpdpbusd(builder, 512, acc, weights, splat(builder, x4))
    if isa in ("avxvnni", "avx2"):
        x = splat(builder, x4, 8)
        lo, hi = (
            _dot4_half(builder, isa, a, w, x, wide)
            for a, w in zip(halves(builder, acc), halves(builder, weights), strict=True)
        )
        return builder.shuffle_vector(lo, hi, ir.Constant(_V_I32, list(range(LANES))))
    for c in range(4):
        lane_bytes = ir.Constant(_V_I32, [4 * lane + c for lane in range(LANES)])
        w = builder.shuffle_vector(weights, ir.Constant(weights.type, ir.Undefined), lane_bytes)
        x = builder.sext(builder.trunc(builder.lshr(x4, _I32(8 * c)), _I8), _I32)
        acc = builder.add(acc, builder.mul(builder.zext(w, _V_I32), splat(builder, x)))
    return acc


def _vpdpbusd(builder, bits: int, acc, weights, x):
    if llvm.llvm_version_info[0] < 22:  # LLVM 22 gave the byte operands their true type
        weights = builder.bitcast(weights, acc.type)
    else:
        x = builder.bitcast(x, weights.type)
    return call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", acc.type, [acc, weights, x])


def _dot4_half(builder, isa: str, acc, weights, x, wide: bool):
    if isa == "avxvnni":
        return _vpdpbusd(builder, 256, acc, weights, x)
    bytes32, shorts16 = weights.type, ir.VectorType(_I16, 16)
    x = builder.bitcast(x, bytes32)
    # pmaddubsw adds pairs of products in 16 bits: 7-bit weights fit, so a wide weight goes in two pieces.
    parts = [weights]
    if wide:
        parts = [builder.and_(weights, const_int(_I8, mask, 32)) for mask in (0x7F, 0x80)]
    for part in parts:
        pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts16, [part, x])
        quads = call(builder, "llvm.x86.avx2.pmadd.wd", acc.type, [pairs, const_int(_I16, 1, 16)])
        acc = builder.add(acc, quads)
    return acc


def carry_loop(builder, count, carried, body):
    """for i in range(count): carried = body(i, carried); values live in registers. Returns the last values."""
    before = builder.block
    loop = builder.append_basic_block("loop")
    step = builder.append_basic_block("step")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(_I64)
    index.add_incoming(_I64(0), before)
    values = []
    for value in carried:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        values.append(phi)
    builder.cbranch(builder.icmp_signed("<", index, count), step, done)
    builder.position_at_end(step)
    new = body(index, values)
    end = builder.block
    index.add_incoming(builder.add(index, _I64(1)), end)
    for phi, value in zip(values, new, strict=True):
        phi.add_incoming(value, end)
    builder.branch(loop)
    builder.position_at_end(done)
    return values


# --------------------------------------------------------------------------- the vector type and its operations


class F32x16Type(types.Type):
    """Sixteen floats in registers."""

    def __init__(self):
        super().__init__(name="F32x16")


F32x16 = F32x16Type()


@register_model(F32x16Type)
class _F32x16Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _V_F32)


def _operation(result, *args):
    """Decorator: make a numba intrinsic `args -> result` of an emitter `(builder, *values) -> value or None`."""
    signature = result(*args)

    def wrap(emit) -> Any:
        def codegen(context, builder, _, values):
            value = emit(builder, *values)
            return context.get_dummy_value() if value is None else value

        by_arity = {
            0: lambda typingctx: (signature, codegen),
            1: lambda typingctx, a: (signature, codegen),
            2: lambda typingctx, a, b: (signature, codegen),
            3: lambda typingctx, a, b, c: (signature, codegen),
        }
        return functools.wraps(emit)(intrinsic(by_arity[len(args)]))

    return wrap


@_operation(types.int64, types.int64, types.int64)
def field(builder, block, index):
    """Entry `index` of an int64 array at address `block`."""
    return emit_load(builder, builder.add(block, builder.shl(index, _I64(3))), _I64, 8)


@_operation(types.int64, types.int64)
def load_i32(builder, address):
    return builder.sext(emit_load(builder, address, _I32), _I64)


@_operation(types.float32, types.int64)
def load_f32(builder, address):
    return emit_load(builder, address, _F32)


@_operation(types.void, types.int64, types.float32)
def store_f32(builder, address, value):
    emit_store(builder, value, address)


@_operation(types.int64, types.int64)
def load_i64(builder, address):
    return emit_load(builder, address, _I64, 8)


@_operation(types.void, types.int64, types.int64)
def store_i64(builder, address, value):
    emit_store(builder, value, address, 8)


@_operation(types.void, types.int64, types.int64)
def store_i32(builder, address, value):
    emit_store(builder, builder.trunc(value, _I32), address)


@_operation(types.void, types.int64, types.int64, types.int64)
def copy_span(builder, to, source, size):
    """Copy bytes that do not overlap."""
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I8.as_pointer(), _I64, ir.IntType(1)])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.memcpy.p0.p0.i64")
    builder.call(function, [pointer(builder, to, _I8), pointer(builder, source, _I8), size, ir.IntType(1)(0)])


@_operation(F32x16, types.int64)
def load(builder, address):
    return emit_load(builder, address, _V_F32)


@_operation(types.void, types.int64, F32x16)
def store(builder, address, v):
    emit_store(builder, v, address)


@_operation(types.void, types.int64, types.int64)
def prefetch_span(builder, address, size):
    """Start loading `size` bytes, a multiple of 64."""

    def body(line, _):
        prefetch(builder, builder.add(address, builder.shl(line, _I64(6))))
        return []

    carry_loop(builder, builder.lshr(size, _I64(6)), [], body)


@_operation(F32x16, types.float32)
def broadcast(builder, scalar):
    return splat(builder, scalar)


@_operation(F32x16, F32x16, F32x16)
def add(builder, a, b):
    return builder.fadd(a, b)


@_operation(F32x16, F32x16, F32x16)
def sub(builder, a, b):
    return builder.fsub(a, b)


@_operation(F32x16, F32x16, F32x16)
def mul(builder, a, b):
    return builder.fmul(a, b)


@_operation(F32x16, F32x16, F32x16, F32x16)
def mul_add(builder, a, b, c):
    return fma(builder, a, b, c)


@_operation(F32x16, F32x16, F32x16)
def vmax(builder, a, b):
    return maximum(builder, a, b)


@_operation(F32x16, F32x16)
def vexp(builder, a):
    return emit_exp(builder, a)


@_operation(types.float32, types.float32)
def exp_f32(builder, a):
    """The same bits as `vexp` gives per lane."""
    return builder.extract_element(emit_exp(builder, splat(builder, a)), _I32(0))


@_operation(types.float32, F32x16)
def sum_lanes(builder, a):
    return reduce(builder, a, lambda b, x, y: b.fadd(x, y))


@_operation(types.float32, F32x16)
def max_lanes(builder, a):
    return reduce(builder, a, maximum)


@_operation(types.int64, F32x16, F32x16)
def count_at_least(builder, a, b):
    """Lanes in which a >= b."""
    found = builder.zext(builder.fcmp_ordered(">=", a, b), _V_I32)
    return builder.zext(reduce(builder, found, lambda b_, x, y: b_.add(x, y)), _I64)


@_operation(types.float32, types.int64)
def float_of_bits(builder, bits):
    return builder.bitcast(builder.trunc(bits, _I32), _F32)


@_operation(F32x16, F32x16, types.int64, types.float32)
def keep_first(builder, a, count, other):
    """Lanes below `count` keep their value, the rest become `other`."""
    lanes = ir.Constant(_V_I32, list(range(LANES)))
    limit = splat(builder, builder.trunc(count, _I32))
    return builder.select(builder.icmp_signed("<", lanes, limit), a, splat(builder, other))


@_operation(F32x16, F32x16, F32x16)
def swiglu(builder, gate, up):
    """silu(gate) * up."""
    denominator = builder.fadd(emit_exp(builder, builder.fneg(gate)), const_f32(1.0))
    return builder.fmul(builder.fdiv(gate, denominator), up)


@_operation(types.void, types.int64, F32x16, F32x16)
def quantize_store(builder, address, a, b):
    """Quantise a group of 32 values to the block at `address`: f32 scale, f32 scale*sum(q), 32 x int8 q.

    scale = max|x| / 127, q = round to nearest even; the sum lets offsets of the weights be applied afterwards.
    """
    absolute = lambda v: call(builder, "llvm.fabs.v16f32", v.type, [v])  # noqa: E731
    peak = reduce(builder, maximum(builder, absolute(a), absolute(b)), maximum)
    scale = builder.fmul(peak, _F32(1.0 / 127.0))
    nonzero = builder.fcmp_ordered(">", peak, _F32(1e-30))
    inverse = splat(builder, builder.select(nonzero, builder.fdiv(_F32(127.0), peak), _F32(0.0)))
    magic = const_f32(12582912.0)
    total = None
    for i, v in enumerate((a, b)):
        whole = builder.bitcast(builder.fadd(builder.fmul(v, inverse), magic), _V_I32)
        q = builder.sub(whole, const_int(_I32, 0x4B400000, LANES))
        emit_store(builder, builder.trunc(q, _V_I8), builder.add(address, _I64(8 + LANES * i)), 1)
        total = q if total is None else builder.add(total, q)
    total = reduce(builder, total, lambda b_, x, y: b_.add(x, y))
    emit_store(builder, scale, address)
    emit_store(builder, builder.fmul(scale, builder.sitofp(total, _F32)), builder.add(address, _I64(4)))


# --------------------------------------------------------------------------- cache elements


def _to_cache(builder, kind: str, v):
    """Float lanes -> cache elements; binary16 saturates instead of becoming infinite."""
    if kind == "f32":
        return v
    n = v.type.count
    low, high = const_f32(-65504.0, n), const_f32(65504.0, n)
    v = maximum(builder, v, low)
    v = builder.select(builder.fcmp_ordered("<", v, high), v, high)
    return builder.fptrunc(v, ir.VectorType(_F16, n))


@intrinsic
def element_bytes(typingctx, target):
    """Size of a cache element; a constant."""
    size = 2 if target.kv == "f16" else 4
    return types.int64(target), lambda context, builder, signature, values: _I64(size)


@intrinsic
def load_elements(typingctx, target, address):
    """Sixteen neighbouring cache elements as floats."""

    def codegen(context, builder, signature, values):
        target = signature.args[0]
        if target.kv == "f32":
            return emit_load(builder, values[1], _V_F32)
        return emit_f16_to_f32(builder, emit_load(builder, values[1], ir.VectorType(_I16, LANES), 2), target.isa)

    return F32x16(target, types.int64), codegen


@intrinsic
def store_elements(typingctx, target, address, v):
    """Sixteen neighbouring cache elements."""

    def codegen(context, builder, signature, values):
        emit_store(builder, _to_cache(builder, signature.args[0].kv, values[2]), values[1], 2)
        return context.get_dummy_value()

    return types.void(target, types.int64, F32x16), codegen


@intrinsic
def scatter_elements(typingctx, target, address, stride, v):
    """Sixteen cache elements, `stride` bytes apart."""

    def codegen(context, builder, signature, values):
        elements = _to_cache(builder, signature.args[0].kv, values[3])
        address = values[1]
        for lane in range(LANES):
            emit_store(builder, builder.extract_element(elements, _I32(lane)), address, 2)
            address = builder.add(address, values[2])
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, F32x16), codegen


@intrinsic
def unpack_quad(typingctx, target, data, scale, out):
    """Four values of a packed 8-bit row: (u - 128) * scale, see formats.pack."""

    def codegen(context, builder, signature, values):
        _, data, scale, out = values
        ints = ir.VectorType(_I32, 4)
        q = builder.zext(emit_load(builder, data, ir.VectorType(_I8, 4)), ints)
        q = builder.sitofp(builder.sub(q, const_int(_I32, 128, 4)), ir.VectorType(_F32, 4))
        half = splat(builder, emit_load(builder, scale, _I16, 2), 4)
        emit_store(builder, builder.fmul(q, emit_f16_to_f32(builder, half, signature.args[0].isa)), out)
        return context.get_dummy_value()

    return types.void(target, types.int64, types.int64, types.int64), codegen


# --------------------------------------------------------------------------- threads


@_operation(types.int64, types.int64, types.int64)
def atomic_add(builder, address, amount):
    """Adds to an int64 in memory, returns what was there before."""
    return builder.atomic_rmw("add", pointer(builder, address, _I64), amount, "seq_cst")


@_operation(types.int64, types.int64)
def atomic_load(builder, address):
    return builder.load_atomic(pointer(builder, address, _I64), "seq_cst", 8)


@_operation(types.void, types.int64, types.int64)
def atomic_store(builder, address, value):
    builder.store_atomic(value, pointer(builder, address, _I64), "seq_cst", 8)


@_operation(types.void)
def cpu_relax(builder):
    """Tells the core that this is a waiting loop."""
    if llvm.get_process_triple().startswith(("x86", "i386", "i686")):
        builder.call(
            cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"),
            [],
        )
    else:
        builder.fence("seq_cst")
