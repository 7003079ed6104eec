"""Deltas on disk: changes of every kind, and every way in which base and delta can fail to fit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stille.errors import CheckpointError, ConfigError, ModelNotFoundError
from stille.model import load_config, load_model, load_tokenizer
from stille.model.convert.delta import (
    ORDER,
    DeltaSource,
    changes,
    is_delta,
    read_delta,
    tensor_digests,
    write_delta,
)
from stille.model.load import open_weights

NAME = "model.layers.1.mlp.gate_up_proj"
PLAIN = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Where the base and its delta are kept between tests, which get copies."""
    return tmp_path_factory.mktemp("kept") / "made"


@pytest.fixture
def base(dense, run, kept, tmp_path) -> Path:
    if not kept.exists():
        made = dense("llama", "making/dense")
        run(made, tmp_path / "making" / "delta")
        shutil.move(tmp_path / "making", kept)  # so that no delta finds its base by where it was
    for folder in ("dense", "delta"):
        shutil.copytree(kept / folder, tmp_path / folder)
    return tmp_path / "dense"


@pytest.fixture
def delta(base) -> Path:
    return base.with_name("delta")


def rewrite(folder, tensors, **values):
    """The delta again, with these tensors added; its base's digests as they are."""
    opened = read_delta(folder)
    config, own = load_config(folder), load_file(opened.file)
    write_delta(folder, config, opened.base_source(), opened.digests, own | tensors, **values)


def source_of(folder) -> DeltaSource:
    opened = read_delta(folder)
    return DeltaSource(opened, load_config(folder), *open_weights(opened.base_source()))


class TestChanges:
    @pytest.mark.parametrize("name", [NAME, PLAIN])
    def test_whole_tensors_and_differences(self, delta, name):
        before = load_model(delta, progress=False).model.get_parameter(name).detach()
        noise = torch.randn(before.shape)
        rewrite(delta, {name: noise})
        assert torch.equal(load_model(delta, progress=False).model.get_parameter(name), noise)
        rewrite(delta, {name + ".difference": noise.bfloat16()})
        source = source_of(delta)  # the whole value is still there, and goes first
        assert torch.equal(source.read(name, torch.float32), noise)

    @pytest.mark.parametrize("name", [NAME, PLAIN])
    def test_pairs_of_low_rank(self, delta, name):
        before = load_model(delta, progress=False).model.get_parameter(name).detach()
        *batch, rows, columns = before.shape
        a, b = torch.randn(*batch, 3, columns), torch.randn(*batch, rows, 3)
        rewrite(delta, {name + ".low_rank_a": a, name + ".low_rank_b": b})
        for dtype in (torch.float32, torch.bfloat16):
            after = load_model(delta, dtype=dtype, progress=False).model.get_parameter(name)
            assert torch.equal(after, (before + b @ a).to(dtype))

    @torch.no_grad()
    @pytest.mark.parametrize("rank", [0, 2])
    def test_what_training_changed_comes_back(self, delta, ids, rank):
        """Changes of rank 1 are kept by differences in float32, and by pairs of rank 2."""
        trained = load_model(delta, progress=False).model
        for name in (NAME, PLAIN, "model.layers.2.mlp.shared.down_proj.weight"):
            weight = trained.get_parameter(name)
            weight += torch.randn(*weight.shape[:-1], 1) * torch.randn(weight.shape[-1])
        trained.model.norm.weight += 0.5
        trained.model.layers[0].mlp.gate.quantiles += 1
        found = changes(trained.state_dict(), source_of(delta), dtype=torch.float32, rank=rank)
        tail = (".low_rank_a", ".low_rank_b") if rank else (".difference",)
        assert {name for name in found if name.startswith(NAME)} == {NAME + end for end in tail}
        assert PLAIN.replace("q_proj", "k_proj") not in " ".join(found)
        opened = read_delta(delta)
        write_delta(delta, load_config(delta), opened.base_source(), opened.digests, found)
        torch.testing.assert_close(
            load_model(delta, progress=False).model(ids).logits, trained(ids).logits, rtol=1e-3, atol=1e-3
        )

    def test_a_change_of_nothing(self, delta):
        rewrite(delta, {PLAIN + ".difference": torch.zeros(2, 2)})
        with pytest.raises(CheckpointError, match=r"q_proj\.weight\.difference \[2, 2\] of the delta .* changes"):
            load_model(delta, progress=False)

    def test_half_a_pair(self, delta):
        rewrite(delta, {PLAIN + ".low_rank_a": torch.zeros(2, 48)})
        with pytest.raises(CheckpointError, match="low_rank_a"):
            load_model(delta, progress=False)

    def test_a_tensor_too_many(self, delta):
        rewrite(delta, {"model.nonsense": torch.zeros(2)})
        with pytest.raises(CheckpointError, match=r"the delta .* on the base .* not part of.*model\.nonsense"):
            load_model(delta, progress=False)


class TestTheWrongBase:
    def test_other_contents(self, base, delta, make_checkpoint):
        weights = load_file(base / "model.safetensors")
        weights["model.norm.weight"][3] += 1
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"dense is not the base of the delta .*delta.*model\.norm\.weight"):
            load_model(delta, progress=False)

    def test_another_model(self, base, delta, dense):
        shutil.rmtree(base)
        dense("qwen3")
        with pytest.raises(CheckpointError, match=r"is not the base .* not in it: .*q_norm"):
            load_model(delta, progress=False)

    def test_another_configuration(self, base, delta):
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
        with pytest.raises(CheckpointError, match=r"rms_norm_eps is 1e-06 in the delta and 0\.001 in the base"):
            load_model(delta, progress=False)

    @pytest.mark.parametrize("load", [load_model, load_tokenizer])
    def test_none(self, base, delta, load):
        shutil.rmtree(base)
        with pytest.raises(ModelNotFoundError, match=r"the delta .*delta needs its base '.*dense'"):
            load(delta)

    def test_a_delta(self, base, delta):
        shutil.rmtree(base)
        shutil.copytree(delta, base)
        with pytest.raises(CheckpointError, match="a delta itself"):
            load_model(delta, progress=False)

    def test_moved_together_they_are_found(self, base, delta, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        for folder in (base, delta):
            folder.rename(tmp_path / "elsewhere" / folder.name)
        assert load_model(tmp_path / "elsewhere" / "delta", progress=False).model

    def test_shards_are_the_same_base(self, base, delta, make_checkpoint):
        (base / "model.safetensors").unlink()
        make_checkpoint("llama").save_pretrained(base, max_shard_size="30KB")
        assert load_model(delta, progress=False).model


class TestDamage:
    def test_a_truncated_file(self, delta):
        file = read_delta(delta).file
        os.truncate(file, file.stat().st_size - 1)
        with pytest.raises(CheckpointError, match=r"of the delta .* on the base .*dense' is truncated: \d+ bytes"):
            load_model(delta, progress=False)

    def test_a_flipped_bit(self, delta):
        file = read_delta(delta).file
        content = bytearray(file.read_bytes())
        content[-100] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"of the delta .* on the base .*dense' is damaged: sha256"):
            load_model(delta, progress=False)

    def test_a_missing_file(self, delta):
        read_delta(delta).file.unlink()
        with pytest.raises(CheckpointError, match="is missing"):
            load_model(delta, progress=False)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1, "base": 3, "file": {}}'])
    def test_an_unreadable_description(self, delta, content):
        (delta / "delta.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"delta\.json is damaged"):
            load_model(delta, progress=False)

    def test_a_newer_format(self, delta):
        values = json.loads((delta / "delta.json").read_text())
        (delta / "delta.json").write_text(json.dumps(values | {"format": 3}))
        with pytest.raises(CheckpointError, match=r"on the base .*dense' has format 3; this version reads 1 to 2"):
            load_model(delta, progress=False)

    def test_changed_digests(self, delta):
        values = json.loads((delta / "delta.json").read_text())
        values["base_tensors"][PLAIN] = "0" * 64
        (delta / "delta.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match="do not give its fingerprint"):
            load_model(delta, progress=False)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"shared_size": 44}, "84, but the dense FFN has 80"),
            ({"num_experts": 5, "expert_size": 8}, "misshapen: .*gate"),
        ],
    )
    def test_another_configuration_of_experts(self, delta, changed, message):
        config = json.loads((delta / "config.json").read_text())
        config["experts"] |= changed
        (delta / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"the delta .* on the base .*") as error:
            load_model(delta, progress=False)
        assert error.match(message)

    @pytest.mark.parametrize("order", [torch.zeros(3, 80, dtype=torch.int32), torch.zeros(3, 8, dtype=torch.int32)])
    def test_no_permutation(self, delta, order):
        rewrite(delta, {ORDER: order})
        with pytest.raises(CheckpointError, match=r"convert\.order of the delta .* on the base"):
            load_model(delta, progress=False)


class TestWriting:
    def test_it_is_there_whole_or_not_at_all(self, delta, monkeypatch, tmp_path):
        before = {file.name: file.read_bytes() for file in delta.iterdir()}

        def full_disk(*_, **__):
            raise OSError("no space left")

        monkeypatch.setattr("stille.model.config.StilleConfig.save_pretrained", full_disk)
        with pytest.raises(OSError, match="no space"):
            rewrite(delta, {})
        assert {file.name: file.read_bytes() for file in delta.iterdir()} == before
        assert sorted(each.name for each in tmp_path.iterdir() if each.name.startswith(".")) == []

    def test_only_deltas_are_replaced(self, base, delta):
        opened = read_delta(delta)
        with pytest.raises(ConfigError, match="dense exists and is no delta"):
            write_delta(base, load_config(delta), opened.base_source(), opened.digests, {})
        assert is_delta(delta)
        assert not is_delta(base)

    def test_it_says_how_it_was_made(self, delta):
        assert read_delta(delta).about["calibration tokens"] == 512

    def test_digests_are_of_names_shapes_and_bytes(self, base):
        _, source = open_weights(base)
        digests = tensor_digests(source)
        assert set(digests) == set(source.shapes())
        weights = load_file(base / "model.safetensors")
        weights[PLAIN] = weights[PLAIN].T.contiguous()
        weights["model.norm.weight"] = weights["model.norm.weight"].double()
        save_file(weights, base / "model.safetensors")
        changed = {name for name, digest in tensor_digests(open_weights(base)[1]).items() if digests[name] != digest}
        assert changed == {PLAIN, "model.norm.weight"}
