"""What the model remembers: words that stand for identities, and the long memory behind them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stille.kernels.hsa import HSAConfig, reference
from stille.video.model import TINY
from stille.video.model.identity import Context, IdentityDecoder, PlaceBias
from stille.video.model.memory import Memory, choose, recall
from stille.video.model.words import WordTable, settle
from stille.video.types import ATTRIBUTES, KINDS, NOBODY

WORDS, OBJECTS = 7, 5
CONFIG = replace(TINY, width=96, height=64, dim=32, heads=2, queries=20, carried=OBJECTS, words=WORDS, object_frames=3)
SMALL = replace(CONFIG, long_tokens=32, leaf=4, keep=3)  # eight leaves
CPU = torch.device("cpu")


def table(batch: int) -> WordTable:
    m = Memory.empty(SMALL, batch, CPU, torch.float32)
    return WordTable(m.identity_RW, m.last_RW, m.evidence_RWA, m.weight_RWA, m.next_R)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000))
def test_words_are_recycled_and_never_shared(seed):
    random = torch.Generator().manual_seed(seed)
    held, owner, seen_last = table(2), [{}, {}], [{}, {}]
    highest = [-1, -1]
    for t in range(12):
        logits = 3 * torch.randn(2, OBJECTS, WORDS + 1, generator=random)
        logits[..., :-1].masked_fill_((held.identity_BW < 0)[:, None], -math.inf)  # free words are in no memory
        score = torch.rand(2, OBJECTS, generator=random)
        kind = torch.randint(0, len(KINDS), (2, OBJECTS), generator=random)
        said = torch.randn(2, OBJECTS, len(ATTRIBUTES), generator=random)
        time = torch.full((2,), float(t), dtype=torch.float64)
        before = held
        now, held = settle(held, logits, score, kind, said, time, 0.4, 0.6)
        for b in range(2):
            words = [w for w in now.word_BK[b].tolist() if w != NOBODY]
            names = [n for n in now.identity_BK[b].tolist() if n != NOBODY]
            assert len(set(words)) == len(words)
            assert len(set(names)) == len(names) == len(words)
            assert all(score[b, k] >= 0.4 for k in range(OBJECTS) if now.word_BK[b, k] >= 0)
            recycled = set(now.recycled_BW[b].nonzero().flatten().tolist())
            for k in range(OBJECTS):
                word, name = int(now.word_BK[b, k]), int(now.identity_BK[b, k])
                if word == NOBODY:
                    assert not now.attribute_BKA[b, k].any()
                elif word in recycled:
                    assert name > highest[b]  # never used before
                    old = [seen_last[b].get(w, -1) for w in range(WORDS) if w not in words]
                    assert all(seen_last[b].get(word, -1) <= last for last in old)  # seen longest ago
                    owner[b][word] = name
                else:
                    assert owner[b][word] == name == int(before.identity_BW[b, word])
            highest[b] = max([highest[b], *names])
            seen_last[b] |= dict.fromkeys(words, t)


def test_attributes_gather_and_fade():
    held, odds = table(1), []
    for t, logit in enumerate([2.0] * 6 + [-2.0] * 30):
        logits = torch.full((1, 1, WORDS + 1), -math.inf)
        logits[..., -1 if t == 0 else int(held.identity_BW[0].argmax())] = 0.0
        said = torch.full((1, 1, len(ATTRIBUTES)), logit)
        time = torch.tensor([0.2 * t], dtype=torch.float64)
        now, held = settle(held, logits, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int64), said, time, 0.4, 0.6)
        assert int(now.identity_BK) == 0
        odds.append(dict(zip(ATTRIBUTES, now.attribute_BKA[0, 0].tolist(), strict=True)))
    assert odds[0]["helmet"] == pytest.approx(2.0)
    assert 2.0 < odds[1]["helmet"] < odds[5]["helmet"] <= 8.0  # looks add up, but not for ever
    assert odds[12]["lying"] < 0 < odds[6]["helmet"]  # what may change does so soon
    assert all(each["loaded"] == 0 for each in odds)  # no attribute of persons


def kv(count: int, random: torch.Generator, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, count, 2, SMALL.dim, generator=random)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.integers(-1, WORDS - 1), min_size=OBJECTS, max_size=OBJECTS), min_size=1, max_size=25))
def test_the_long_memory_keeps_the_newest_leaves(steps):
    """Against a plain list of leaves."""
    memory, random = Memory.empty(SMALL, 2, CPU, torch.float32), torch.Generator().manual_seed(0)
    rows = torch.tensor([1])
    leaves: list[dict] = []  # word, tokens, written
    for t, words in enumerate(steps):
        once = [w if w not in words[:i] else -1 for i, w in enumerate(words)]
        new = kv(OBJECTS, random)
        for late in (0.0, 0.1):  # the second is too early to be kept
            time = torch.tensor([t + late], dtype=torch.float64)
            memory.add_long(rows, new, torch.tensor([once]), new[:, :, 0, :4].abs(), time, 0.5)
        fresh = []
        for k, word in enumerate(once):
            mine = [x for x in leaves if x["word"] == word and len(x["tokens"]) < SMALL.leaf]
            if word >= 0 and mine:
                mine[0]["tokens"].append(new[0, k])
                mine[0]["written"] = t
            elif word >= 0:
                fresh.append({"word": word, "tokens": [new[0, k]], "written": t})
        leaves += fresh
        keep = sorted(leaves, key=lambda x: -x["written"])[: SMALL.leaves]
        last = keep[-1]["written"] if len(leaves) > SMALL.leaves else -1
        held = {}
        for i in range(SMALL.leaves):
            count = int(memory.count_RL[1, i])
            if count:
                tokens = memory.long_RLE2C[1, i, :count]
                held[tuple(tokens[:, 0, 0].tolist())] = int(memory.leaf_word_RL[1, i])
                torch.testing.assert_close(memory.sum_RLC[1, i], tokens[:, 0].sum(0))
                torch.testing.assert_close(memory.long_box_RLE4[1, i, :count], tokens[:, 0, :4].abs())
        want = {tuple(x[0, 0].item() for x in leaf["tokens"]): leaf["word"] for leaf in leaves}
        sure = {tuple(x[0, 0].item() for x in leaf["tokens"]) for leaf in leaves if leaf["written"] > last}
        assert sure <= held.keys() <= want.keys()  # among equally old ones any may go
        assert all(want[tokens] == word for tokens, word in held.items())
        assert len(held) == min(len(leaves), SMALL.leaves)
        leaves = [leaf for leaf in leaves if tuple(x[0, 0].item() for x in leaf["tokens"]) in held]
    assert int(memory.count_RL[0].sum()) == 0  # the other camera's


def test_leaves_are_chosen_as_hsa_chooses():
    random = torch.Generator().manual_seed(1)
    config = HSAConfig(leaf=16, outliers=0)
    keys = torch.randn(4, 40 * 16, 16, generator=random)  # heads, keys, width of a head
    query = 3 * torch.randn(4, 6, 16, generator=random)
    allowed = torch.ones(4, 1, 40, dtype=torch.bool)
    want = []
    for i in range(6):
        share = reference.row_shares(query[:, i : i + 1], keys, allowed, 0.25, config).mean(0, keepdim=True)
        nothing = torch.zeros_like(share, dtype=torch.bool)
        want.append(reference.top_leaves(share, torch.ones_like(nothing), nothing, 8)[0, 0])
    sums = (reference.leaf_means(keys, 16) * 16).transpose(0, 1).flatten(1)
    got = choose(query.transpose(0, 1).flatten(1)[None], sums[None], torch.full((1, 40), 16), 4, 8)[0]
    for i in range(6):
        assert sorted(got[i].tolist()) == want[i].nonzero().flatten().tolist()


def remembered(config, words: list[list[int]], step: float = 1.0) -> tuple[Memory, IdentityDecoder, torch.Tensor]:
    """A memory that holds frames of objects with these words, each with looks of its own."""
    torch.manual_seed(5)
    decoder = IdentityDecoder(config).eval()
    torch.nn.init.normal_(decoder.place.down.weight)  # as if it had learned
    looks = torch.randn(1, config.words, config.dim)
    memory, rows = Memory.empty(config, 1, CPU, torch.float32), torch.tensor([0])
    for t, frame in enumerate(words):
        word = torch.tensor([frame])
        box = torch.tensor([0.1, 0.1, 0.3, 0.4]).expand(1, len(frame), 4)
        x, at = decoder.describe(looks[:, word[0]], box)
        time = torch.tensor([t * step], dtype=torch.float64)
        remember = decoder.remember(x, at, word)
        memory.add_seen(rows, remember, word, box, time)
        memory.add_long(rows, remember, word, box, time, 0.5)
    return memory, decoder, looks


@torch.no_grad()
def answer(kind: str, memory: Memory, decoder: IdentityDecoder, looks: torch.Tensor, time: float) -> torch.Tensor:
    config = replace(SMALL, long_memory=kind)
    rows, now = torch.tensor([0]), torch.tensor([time], dtype=torch.float64)
    box = torch.tensor([0.5, 0.5, 0.7, 0.8]).expand(1, OBJECTS, 4)
    x, at = decoder.describe(looks[:, :OBJECTS], box)
    word, place = memory.seen_word_RFK[rows].flatten(1), memory.seen_box_RFK4[rows].flatten(1, 2)
    age = (now[:, None] - memory.seen_time_RF[rows]).repeat_interleave(OBJECTS, 1)
    age = torch.where(word >= 0, age, 0.0)
    shared = memory.seen_RFK2C[rows].flatten(1, 2)
    old, own = recall(memory, rows, decoder.query(x, at), now, config)
    if old is None:
        return decoder(x, at, box, Context(shared, word, place, age[:, None]))
    if own:
        context = Context(shared, word, place, age[:, None], None, old.kv, old.word, old.box, old.age)
        return decoder(x, at, box, context)
    pairs = (shared, old.kv), (word, old.word), (place, old.box), (age, old.age)
    kv, word, place, age = (torch.cat(pair, 1) for pair in pairs)
    return decoder(x, at, box, Context(kv, word, place, age[:, None]))


def test_kinds_of_long_memory_agree_while_it_is_small():
    here = remembered(SMALL, [[0, 1, 2, -1, -1]] * 3)
    none = answer("none", *here, time=5.0)
    for kind in ("hsa", "dense", "window"):  # whom the last frames hold is not read once more
        torch.testing.assert_close(answer(kind, *here, time=5.0), none)
    few = remembered(SMALL, [[0, 1, 2, -1, -1]] * 3 + [[-1] * 5] * 3)  # three leaves, as many as a query reads
    hsa, dense, window, none = (answer(kind, *few, time=5.0) for kind in ("hsa", "dense", "window", "none"))
    torch.testing.assert_close(hsa, dense)
    torch.testing.assert_close(window, dense)
    assert not torch.allclose(none[..., :3], dense[..., :3])
    many = remembered(SMALL, [[0, 1, 2, 3, 4]] * 3 + [[5, 6, -1, -1, -1]] * 4)  # seven leaves
    hsa, dense, window, none = (answer(kind, *many, time=70.0) for kind in ("hsa", "dense", "window", "none"))
    assert torch.isinf(none[0, :, :5]).all()  # nobody of them is in the last frames
    assert torch.isfinite(dense[0, :, :5]).all()
    assert not torch.allclose(hsa, dense)
    assert not torch.allclose(window, dense)


@given(st.floats(0.2, 1.0), st.floats(-0.1, 0.1), st.floats(0.0, 100.0), st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_what_places_say_is_the_same_near_and_far_from_a_camera(scale, shift, age, seed):
    torch.manual_seed(seed)
    place = PlaceBias(3, 640 / 352)
    torch.nn.init.normal_(place.down.weight)
    corner, size = torch.rand(2, 1, 5, 2), 0.1 + torch.rand(2, 1, 5, 2)
    now, past = torch.cat([corner, corner + size], -1)
    ages = torch.full((1, 5), age)
    want = place(now, past, ages)
    torch.testing.assert_close(place(scale * now + shift, scale * past + shift, ages), want, atol=1e-3, rtol=1e-3)
    mirrored = [torch.stack([1 - x[..., 2], x[..., 1], 1 - x[..., 0], x[..., 3]], -1) for x in (now, past)]
    torch.testing.assert_close(place(*mirrored, ages), want, atol=1e-3, rtol=1e-3)
    everywhere = place(now[:, :, None], past[:, None], torch.zeros(1, 1, 1))
    assert everywhere.shape == (1, 5, 5, 3)
    assert everywhere.isfinite().all()


def test_an_object_is_found_by_its_looks_after_a_minute_and_more():
    """Without training, keys made equal to queries: what a match looks like."""
    random = torch.Generator().manual_seed(2)
    config = replace(CONFIG, long_tokens=1536, leaf=16, keep=2, words=40)
    memory, rows = Memory.empty(config, 1, CPU, torch.float32), torch.tensor([0])
    looks = torch.randn(40, config.dim, generator=random)
    for t in range(240):  # two minutes at two frames per second, five objects at a time
        word = torch.tensor([[(t // 30 * 5 + k) % 40 for k in range(OBJECTS)]])
        key = looks[word] + 0.3 * torch.randn(1, OBJECTS, config.dim, generator=random)
        time = torch.tensor([t / 2], dtype=torch.float64)
        memory.add_long(rows, torch.stack([key, key], 2), word, torch.zeros(1, OBJECTS, 4), time, 0.5)
    query = 4 * looks[:OBJECTS][None]  # seen in the first 15 s only
    old, own = recall(memory, rows, query, torch.tensor([120.0], dtype=torch.float64), config)
    assert own
    assert old is not None
    assert old.word.shape == (1, OBJECTS, 32)
    for k in range(OBJECTS):
        mine = old.word[0, k] == k
        assert int(mine.sum()) == 30
        assert float(old.age[0, k][mine].min()) > 100


def test_who_loses_a_word_takes_the_next_or_is_new():
    def table() -> WordTable:
        identity = torch.tensor([[7, 8, 9, -1, -1, -1]])
        last = torch.where(identity >= 0, 1.0, -math.inf).double()
        nothing = torch.zeros(1, 6, len(ATTRIBUTES))
        return WordTable(identity, last, nothing, nothing.clone(), torch.tensor([10]))

    def settled(*rows: list[float], score: float = 0.9) -> list[int]:
        logits = torch.tensor([rows]).log()
        count = len(rows)
        kind, attribute = torch.zeros(1, count, dtype=torch.int64), torch.zeros(1, count, len(ATTRIBUTES))
        time = torch.tensor([2.0], dtype=torch.float64)
        found, _ = settle(table(), logits, torch.full((1, count), score), kind, attribute, time, 0.5, 0.7)
        return found.identity_BK[0].tolist()

    sure, rival = [0.9, 0.05, 0, 0, 0, 0, 0.05], [0.6, 0.3, 0, 0, 0, 0, 0.1]
    assert settled(sure, rival) == settled(rival, sure)[::-1] == [7, 8]
    third = [0.5, 0.25, 0.22, 0, 0, 0, 0.03]
    assert settled(sure, rival, third) == [7, 8, 9]
    assert settled(sure, [0.6, 0.1, 0, 0, 0, 0, 0.3]) == [7, 10]  # new is likelier than its second choice
    assert settled(sure, [0.85, 0.1, 0, 0, 0, 0, 0.05]) == [7, 10]  # a second choice that is hardly likely
    assert settled([0.1, 0.05, 0, 0, 0, 0, 0.05]) == [7]  # a first one may be
    assert settled(sure, sure, score=0.6) == [7, NOBODY]  # not sure enough for an identity of its own
