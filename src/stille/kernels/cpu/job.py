"""The job block: one int64 array that tells the compiled kernels everything about a step.

Entries are addresses, sizes and counts; the constants below are their places. The decoder (`decoder.py`) fills most of
them once and a few per step. All floats are float32 unless said otherwise; row strides follow from the sizes.
"""

# fmt: off
(
    # model
    HIDDEN,          # C
    HEADS,           # Hq
    KV_HEADS,        # Hkv
    HEAD_DIM,        # D
    LAYERS,
    LAYER_TABLE,     # int64[LAYERS, LAYER_FIELDS]
    BITS,            # 4 or 8: packing of the layers' matrices
    CONSTANTS,       # [rms_norm_eps, softmax scale]
    COS, SIN,        # [positions, D], the first D/2 columns are read
    EMBEDDING,       # packed 8-bit rows
    FINAL_NORM,      # [C]
    HEAD,            # packed 8-bit rows
    HEAD_BLOCKS,     # vocabulary / 16
    ZEROS,           # [16]
    MATMUL, ATTEND,  # compiled tiles.kernels
    # workspace, for the most rows of a step
    STREAM,          # residual stream [T, C]
    X,               # quantised input of the next projection [T, C]
    QKV,             # [T, (Hq + 2 Hkv) D]
    ATTENDED,        # [T, Hq D]
    X_ATTENDED,      # quantised [T, Hq D]
    X_ACTIVATED,     # quantised [T, I]
    X_SELECTED,      # quantised [S, C]
    PARTIALS,        # softmax records of splits [split rows, Hq, splits]
    SCRATCH,         # per thread
    SCRATCH_BYTES,
    COUNTERS,        # one cache line per stage: items taken, items finished
    # step
    ROWS,            # T
    IDS,             # int32[T]
    POSITIONS,       # int32[T]
    ROW_PAGES,       # int32[T], page that holds the row's position
    ROW_PARTIALS,    # int32[T], index among split rows or -1
    TILES,           # int32[TILE_COUNT, TILE_FIELDS]
    TILE_COUNT,
    MAX_SPLITS,      # splits that PARTIALS has room for per row and head
    PAGE_TABLE,      # int32[sequences, pages]
    PAGE_TABLE_WIDTH,
    SELECTED,        # int32[S], rows whose logits are wanted
    SELECTED_COUNT,  # S
    LOGITS,          # [S, 16 HEAD_BLOCKS]
    THREADS,
    # sparse attention, see sparse.py
    LEAVES,          # of a page; 0: every row reads everything
    KEEP_LEAVES,     # that a row reads
    SINK_LEAVES, LOCAL_LEAVES,
    FULL_LEAVES,     # int32[FULL_LEAF_COUNT], page x LEAVES + leaf, those that this step fills
    FULL_LEAF_COUNT,
    SELECTION,       # bits int64[T, Hkv, SELECTION_WORDS], by the leaf's number in the sequence
    SELECTION_WORDS,
    # experts, see experts.py; E is padded to whole vectors where floats are stored by expert
    EXPERTS,         # E
    EXPERT_SIZE,     # neurons of one, a multiple of 16
    ROUTER_SIZE,     # R, 0 without an inner layer
    GATE_KIND, WEIGHT_KIND,  # places in experts.GATES and experts.WEIGHTS
    SCALING,         # [1]
    THRESHOLDS,      # [budgets, LAYERS, E]
    BOUNDS,          # int32[budgets, 2], least and most experts of a row
    ROW_BUDGETS,     # int32[T], which budget
    ROUTER_HIDDEN,   # [T, R]
    X_ROUTER,        # quantised [T, R]
    SCORES,          # [T, E]
    ROUTE_WEIGHTS,   # [T, E]
    MASKS,           # bits int64[LAYERS, MASK_ROWS], experts of a row
    MASK_ROWS,       # the most rows of a step
    TILE_MASKS,      # bits int64[LAYERS, MASK_TILES], experts of any row of a tile of ROW_TILE
    MASK_TILES,      # the most tiles of a step
    ROUTERS_DONE,    # counters int64[tiles]
    ROUTE_ROWS,      # int32[E, MASK_ROWS], rows of an expert, tile after tile from the tile's first row on
    ROUTE_COUNTS,    # int64[E, MASK_TILES]
    X_ROUTED,        # quantised [E, MASK_ROWS, expert size in whole groups], places as in ROUTE_ROWS
    JOB_FIELDS,
) = range(72)

(
    ATTENTION_NORM,  # [C]
    QKV_WEIGHT,      # packed, q heads, k heads, v heads
    QKV_BIAS,        # [(Hq + 2 Hkv) D] or 0
    Q_NORM, K_NORM,  # [D] or 0
    OUT_WEIGHT,      # packed
    OUT_BIAS,        # [C] or 0
    FFN_NORM,        # [C]
    INNER,           # I, neurons that every row runs
    GATE_WEIGHT, UP_WEIGHT, DOWN_WEIGHT,  # packed
    KEYS,            # cache elements [pages, Hkv, D, 64]
    VALUES,          # cache elements [pages, Hkv, 64, D]
    SUMMARIES,       # cache elements [pages, Hkv, LEAVES, 2, D], or 0
    NUMBER,          # of the layer
    ROUTER_DOWN,     # packed 8-bit [R, C], or 0
    ROUTER_UP,       # packed 8-bit [E, R], or [E, C]; 0: no experts
    ROUTER_BIAS,     # [E]
    LOAD_BIAS,       # [E]
    EXPERT_SCALES,   # [E]
    EXPERT_WEIGHTS,  # packed, expert after expert: blocks of gate and up in turn, then down
    LAYER_FIELDS,
) = range(23)

(
    TILE_SEQUENCE,   # row of PAGE_TABLE
    TILE_ROW,        # first row
    TILE_ROWS,       # rows, consecutive positions of one sequence
    TILE_SPLIT,      # first split of the context
    TILE_SPLIT_END,  # end of splits; with one split of several, the result goes to PARTIALS
    TILE_FIELDS,
) = range(6)
# fmt: on

PAGE = 64
"""Tokens per page of the KV cache."""

SPLIT_PAGES = 4
"""Pages whose softmax is taken as one piece before pieces are merged, always at the same boundaries."""

TILE_VECTORS = 48
"""Query vectors (rows x heads of a group) that share a pass over the pages."""

ROW_TILE = 64
"""Rows that one work item of a projection covers."""

RECORD_HEADER = 16
"""Floats before the accumulated values in a softmax record: maximum, sum, padding."""
