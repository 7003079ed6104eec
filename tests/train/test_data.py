"""Documents to batches: nothing lost, nothing read twice, documents apart, the same for any number of processes."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stille.errors import ConfigError
from stille.train import TokenStore, byte_tokenizer, prepare
from stille.train.data import IGNORED, Batches, in_order, make_batch
from stille.train.text import encode

documents = st.lists(st.integers(1, 30), min_size=3, max_size=20).map(
    lambda sizes: [np.arange(size) + 100 * number for number, size in enumerate(sizes)]
)


@given(documents, st.integers(2, 16))
def test_sequences_cover_the_text_and_keep_documents_apart(rows, length):
    store = TokenStore.from_documents(rows)
    count = store.sequences(length)
    assert count == (sum(map(len, rows)) - 1) // length
    if not count:
        return
    batch = make_batch(store, np.arange(count), length)
    assert batch.ids_BT.flatten().tolist() == np.concatenate(rows)[: count * length].tolist()
    document, within = batch.ids_BT // 100, batch.ids_BT % 100
    counted = batch.label_BT != IGNORED
    # Within a document ids count up, so the next id is the label; a label is missing only at a document's end.
    assert torch.equal(batch.label_BT[counted], batch.ids_BT[counted] + 1)
    sizes = torch.tensor([len(row) for row in rows])
    assert torch.equal(~counted, within == sizes[document] - 1)
    # Positions are those in the document, less what lies before the sequence.
    first = torch.arange(count)[:, None] * length
    start = torch.from_numpy(store.starts)[document]
    assert torch.equal(batch.position_BT, within - (first - start).clamp(min=0))
    assert batch.whole == bool((document == document[:, :1]).all())
    assert len(batch.bounds) == 1 + sum(len(row.unique()) for row in document)
    assert batch.bounds.tolist() == [*(batch.position_BT.flatten() == 0).nonzero().flatten().tolist(), count * length]
    mask = batch.mask()
    if mask is not None:
        place = torch.arange(length)
        same = document[:, :, None] == document[:, None, :]
        assert torch.equal(mask[:, 0], same & (place[:, None] >= place))


@given(documents, st.integers(0, 5))
def test_an_epoch_reads_every_sequence_once_and_labels_are_counted_right(rows, seed):
    store = TokenStore.from_documents(rows)
    count = store.sequences(4)
    if not count:
        return
    batches = Batches(store, length=4, batch=1, micro_batch=1, seed=seed)
    for epoch in range(2):
        seen = [int(batches.numbers(step)[0]) for step in range(epoch * count, (epoch + 1) * count)]
        assert sorted(seen) == list(range(count))
    for step in range(count):
        (batch,) = batches.step(step)
        assert batches.labels(step) == int((batch.label_BT != IGNORED).sum())


def test_processes_share_the_micro_batches_of_one(store):
    layout = dict(length=32, batch=8, micro_batch=2, seed=3)
    alone = Batches(store, **layout)
    parts = [Batches(store, **layout, rank=rank, ranks=2) for rank in range(2)]
    for step in (0, 7):
        together = [None] * 4
        together[0::2], together[1::2] = parts[0].step(step), parts[1].step(step)
        for mine, theirs in zip(alone.step(step), together, strict=True):
            assert torch.equal(mine.ids_BT, theirs.ids_BT)
        assert parts[0].labels(step) == parts[1].labels(step) == alone.labels(step)
    assert not np.array_equal(alone.numbers(0), Batches(store, **{**layout, "seed": 4}).numbers(0))


def test_layouts_that_cannot_be_dealt_are_refused(store):
    with pytest.raises(ConfigError, match="evenly"):
        Batches(store, length=32, batch=6, micro_batch=2, ranks=2)
    with pytest.raises(ConfigError, match="less than one sequence"):
        Batches(store, length=100_000, batch=2, micro_batch=2)


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=4))
def test_byte_tokens_are_what_the_tokenizer_itself_says_and_come_back(texts):
    tokenizer = byte_tokenizer()
    for text, ids in zip(texts, encode(tokenizer, texts), strict=True):
        assert ids.tolist() == [*tokenizer(text, add_special_tokens=False).input_ids, 256]
        assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == text


def write_texts(folder, count=40):
    (folder / "deep").mkdir(parents=True)
    (folder / "one.py").write_text("x = 1\n")
    (folder / "left.bin").write_bytes(b"\xff\xfe")
    (folder / "deep" / "lines.jsonl").write_text(
        "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(count))
    )
    return folder


def test_files_become_tokens_once_and_equal_documents_stay_together(tmp_path, tiny_checkpoint):
    from stille.model import load_tokenizer

    folder, cache = write_texts(tmp_path / "text"), tmp_path / "cache"
    for tokenizer in (byte_tokenizer(), load_tokenizer(tiny_checkpoint)):
        train, held_out = prepare([folder], tokenizer, cache, held_out=0.3)
        found = [tokenizer.decode(part) for s in (train, held_out) for part in np.split(s.tokens, s.starts[1:])]
        end = tokenizer.eos_token
        assert sorted(found) == sorted(["x = 1\n" + end, *(f"line {n}{end}" for n in range(40))])
        assert train.tokens.dtype == np.uint16
    made = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    assert prepare([folder], byte_tokenizer(), cache, held_out=0.3)[0].digest != train.digest
    assert made == {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    (folder / "one.py").write_text("x = 2, longer\n")
    again, _ = prepare([folder], tokenizer, cache, held_out=0.3)
    assert again.digest != train.digest or held_out.digest != _.digest


@pytest.mark.parametrize(
    ("name", "content", "mentions"),
    [
        ("a.jsonl", '{"text": "x"}\n{"txt": "y"}\n', "line 2"),
        ("a.jsonl", "[1]\n", "line 1"),
        ("a.jsonl", '{"text": 3}\n', "int"),
        ("a.txt", "alone", "more documents"),
    ],
)
def test_text_that_cannot_be_used_is_told(tmp_path, name, content, mentions):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=mentions):
        prepare([tmp_path / name], byte_tokenizer(), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_no_text_and_damaged_caches_are_told(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        prepare([tmp_path / "nowhere"], byte_tokenizer(), tmp_path / "cache")
    with pytest.raises(ConfigError, match="no text"):
        prepare([tmp_path], byte_tokenizer(), tmp_path / "cache")
    folder = write_texts(tmp_path / "text")
    prepare([folder], byte_tokenizer(), tmp_path / "cache", held_out=0.3)
    (file,) = (tmp_path / "cache").glob("*/train/tokens.bin")
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ConfigError, match="incomplete"):
        prepare([folder], byte_tokenizer(), tmp_path / "cache", held_out=0.3)


def test_held_out_sequences_are_the_same_every_time(store):
    first = [batch.ids_BT for batch in in_order(store, 32, 4, 10)]
    assert sum(len(ids) for ids in first) == 10
    assert all(torch.equal(a, b.ids_BT) for a, b in zip(first, in_order(store, 32, 4, 10), strict=True))
