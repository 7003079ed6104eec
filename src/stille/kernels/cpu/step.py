"""A whole step of the decoder in one compiled call, shared by the calling thread and helpers.

The step is a list of stages, each a number of independent items. Threads take items from a shared counter, and go on to
the next stage when all items of the present one are finished, whoever did them. So a thread that comes late, or never,
costs speed and nothing else: there is no number of participants that anyone waits for. Waiting is a short spin, then
yielding; between steps helpers sleep in a condition variable.
"""

from numba import types

from stille.kernels.cpu import job as J
from stille.kernels.cpu.experts import down_item, expert_item, expert_items, router_blocks, router_item
from stille.kernels.cpu.formats import X_GROUP_BYTES
from stille.kernels.cpu.layers import (
    embed_row,
    gate_up_item,
    head_item,
    norm_row,
    qkv_item,
    quantize_row,
    residual_item,
)
from stille.kernels.cpu.paged import attend_item, combine_row
from stille.kernels.cpu.simd import (
    add,
    atomic_add,
    atomic_load,
    atomic_store,
    cpu_relax,
    entry,
    field,
    inner,
    load,
    load_f32,
    load_i32,
    store,
)
from stille.kernels.cpu.sparse import select_item, summarise_item
from stille.kernels.grids import GROUP

# Control block of a team, int64 entries.
EPOCH, OPEN, ACTIVE, JOB, STOP, MUTEX, CONDITION, CONTROL_FIELDS = range(8)

STAGES_PER_LAYER = 11
# fmt: off
(_NORM, _QKV, _SUMMARISE, _SELECT, _ATTEND, _COMBINE, _OUT, _FFN_NORM, _GATE_UP, _EXPERTS, _DOWN) = range(
    STAGES_PER_LAYER
)
# fmt: on
COUNTER_BYTES = 128  # two cache lines: neighbours are fetched in pairs
_HEAD_BLOCKS_PER_ITEM = 16
_SPINS = 2000

_lock = types.ExternalFunction("pthread_mutex_lock", types.int32(types.int64))
_unlock = types.ExternalFunction("pthread_mutex_unlock", types.int32(types.int64))
_wait = types.ExternalFunction("pthread_cond_wait", types.int32(types.int64, types.int64))
_broadcast = types.ExternalFunction("pthread_cond_broadcast", types.int32(types.int64))
_yield = types.ExternalFunction("sched_yield", types.int32())


def stage_count(layers: int) -> int:
    """Stages of a step: embedding, the layers', final norm, head."""
    return 1 + STAGES_PER_LAYER * layers + 2


@inner
def _rows_per_item(rows):
    return 1 if rows <= 16 else 8


@inner
def _items(job, layer, kind):
    """Items of a stage of a layer."""
    rows, routed = field(job, J.ROWS), field(layer, J.ROUTER_UP) != 0
    tiles = (rows + J.ROW_TILE - 1) // J.ROW_TILE
    if kind == _QKV:
        return tiles * (field(job, J.HEADS) + 2 * field(job, J.KV_HEADS))
    if kind == _ATTEND:
        return field(job, J.TILE_COUNT) * field(job, J.KV_HEADS)
    if kind == _SUMMARISE:
        return field(job, J.FULL_LEAF_COUNT) * field(job, J.KV_HEADS)
    if kind == _SELECT:
        return field(job, J.TILE_COUNT) * field(job, J.KV_HEADS) if field(job, J.LEAVES) > 0 else 0
    if kind in (_OUT, _DOWN):
        return tiles * (field(job, J.HIDDEN) // 16)
    if kind == _GATE_UP:
        gate = router_blocks(job) if routed else 0
        return tiles * (gate + field(layer, J.INNER) // GROUP)
    if kind == _EXPERTS:
        return expert_items(job, layer) if routed else 0
    per_item = _rows_per_item(rows)
    return (rows + per_item - 1) // per_item


@inner
def _combine(job, layer, row, scratch):
    width, heads_width = field(job, J.HIDDEN), field(job, J.HEADS) * field(job, J.HEAD_DIM)
    combine_row(job, row, scratch)
    stride = heads_width // GROUP * X_GROUP_BYTES
    quantize_row(field(job, J.ATTENDED) + 4 * heads_width * row, heads_width, field(job, J.X_ATTENDED) + stride * row)
    bias = field(layer, J.OUT_BIAS)
    if bias != 0:
        stream = field(job, J.STREAM) + 4 * width * row
        for i in range(0, 4 * width, 64):
            store(stream + i, add(load(stream + i), load(bias + i)))


@inner
def _norm(job, gain, row, out_row, out):
    width = field(job, J.HIDDEN)
    stride = width // GROUP * X_GROUP_BYTES
    eps = load_f32(field(job, J.CONSTANTS))
    norm_row(field(job, J.STREAM) + 4 * width * row, gain, width, eps, out + stride * out_row)


@inner
def _layer_item(target, job, layer, kind, item, scratch):
    if kind == _QKV:
        qkv_item(target, job, layer, item)
    elif kind == _SUMMARISE:
        summarise_item(target, job, layer, item, scratch)
    elif kind == _SELECT:
        select_item(target, job, layer, item, scratch)
    elif kind == _ATTEND:
        attend_item(target, job, layer, item, scratch)
    elif kind == _OUT:
        width = field(job, J.HEADS) * field(job, J.HEAD_DIM)
        residual_item(job, field(layer, J.OUT_WEIGHT), field(job, J.X_ATTENDED), width, item)
    elif kind == _GATE_UP:
        gates = 0  # items of the gate come first: the choice is made while others still work on the shared expert
        if field(layer, J.ROUTER_UP) != 0:
            gates = router_blocks(job) * ((field(job, J.ROWS) + J.ROW_TILE - 1) // J.ROW_TILE)
        if item < gates:
            router_item(job, layer, item, scratch)
        else:
            gate_up_item(job, layer, item - gates, scratch)
    elif kind == _EXPERTS:
        expert_item(job, layer, item, scratch)
    elif kind == _DOWN:
        down_item(job, layer, item, scratch)
    else:
        rows = field(job, J.ROWS)
        per_item = _rows_per_item(rows)
        gain = field(layer, J.ATTENTION_NORM) if kind == _NORM else field(layer, J.FFN_NORM)
        for row in range(item * per_item, min(rows, (item + 1) * per_item)):
            if kind == _COMBINE:
                _combine(job, layer, row, scratch)
            else:
                _norm(job, gain, row, row, field(job, J.X))


@inner
def _wait_until(address, value, at_least):
    """Spin, then yield, until the counter is `value`, or no less than it."""
    spins = 0
    while True:
        now = atomic_load(address)
        if now == value or (at_least and now > value):
            return
        cpu_relax()
        spins += 1
        if spins == _SPINS:
            spins = 0
            _yield()


@inner
def _work(target, job, thread):
    """Take part in the step until all of it is done."""
    layers, rows = field(job, J.LAYERS), field(job, J.ROWS)
    scratch = field(job, J.SCRATCH) + thread * field(job, J.SCRATCH_BYTES)
    last = STAGES_PER_LAYER * layers + 2
    for stage in range(last + 1):
        layer = field(job, J.LAYER_TABLE) + (stage - 1) // STAGES_PER_LAYER * 8 * J.LAYER_FIELDS
        kind = (stage - 1) % STAGES_PER_LAYER
        selected = field(job, J.SELECTED_COUNT)
        if stage == 0:
            items = rows
        elif stage == last - 1:
            items = selected
        elif stage == last:
            blocks = field(job, J.HEAD_BLOCKS)
            items = (blocks + _HEAD_BLOCKS_PER_ITEM - 1) // _HEAD_BLOCKS_PER_ITEM if selected else 0
        else:
            items = _items(job, layer, kind)
        counter = field(job, J.COUNTERS) + COUNTER_BYTES * stage
        item = atomic_add(counter, 1)
        while item < items:
            if stage == 0:
                embed_row(target, job, item)
            elif stage == last - 1:
                row = load_i32(field(job, J.SELECTED) + 4 * item)
                _norm(job, field(job, J.FINAL_NORM), row, item, field(job, J.X_SELECTED))
            elif stage == last:
                head_item(job, item, _HEAD_BLOCKS_PER_ITEM)
            else:
                _layer_item(target, job, layer, kind, item, scratch)
            atomic_add(counter + 8, 1)
            item = atomic_add(counter, 1)
        _wait_until(counter + 8, items, True)


@entry
def enter(target, control, job, thread):
    """Thread 0: run the job and return. Others: help with every job until told to stop.

    Args:
        target: `Target`, decides what is compiled.
        control: address of the team's control block.
        job: address of the job block (thread 0).
        thread: number of the calling thread.
    """
    mutex, condition = field(control, MUTEX), field(control, CONDITION)
    shared, seen = False, 0
    if thread == 0:
        counters = field(job, J.COUNTERS)
        for stage in range(STAGES_PER_LAYER * field(job, J.LAYERS) + 3):
            atomic_store(counters + COUNTER_BYTES * stage, 0)
            atomic_store(counters + COUNTER_BYTES * stage + 8, 0)
        shared = field(job, J.THREADS) > 1
        if shared:
            _lock(mutex)
            atomic_store(control + 8 * JOB, job)
            atomic_store(control + 8 * OPEN, 1)
            atomic_add(control + 8 * EPOCH, 1)
            _unlock(mutex)
            _broadcast(condition)
    while True:
        if thread != 0:
            _lock(mutex)
            while atomic_load(control + 8 * EPOCH) == seen and atomic_load(control + 8 * STOP) == 0:
                _wait(condition, mutex)
            seen = atomic_load(control + 8 * EPOCH)
            _unlock(mutex)
            if atomic_load(control + 8 * STOP) != 0:
                return
            # Counted before looking at OPEN: the main thread closes first and then waits for those inside.
            atomic_add(control + 8 * ACTIVE, 1)
            if atomic_load(control + 8 * OPEN) != 0:
                job = atomic_load(control + 8 * JOB)
        if job != 0 and thread < field(job, J.THREADS):
            _work(target, job, thread)
        if thread == 0:
            if shared:
                atomic_store(control + 8 * OPEN, 0)
                _wait_until(control + 8 * ACTIVE, 0, False)
            return
        job = 0
        atomic_add(control + 8 * ACTIVE, -1)
