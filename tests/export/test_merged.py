"""A Submodel in the weights of a Hugging Face folder: importing it gives the changed base, nothing else differs."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from specialize.base import import_base
from specialize.base.checkpoint import read_weights, weight_files
from specialize.base.huggingface import read_base
from specialize.errors import BaseModelError, ExportError, FingerprintMismatch, StoreError
from specialize.export import merged_parameters, open_checkpoint, write_merged
from specialize.submodel import BiasOnly, FullWeights, LayerNormOnly, LoRA, StoredSubmodel
from specialize.submodel.sites import flatten
from tests.base.test_folder import checkpoint, tensors
from tests.bases import tiny_whisper
from tests.export.checkpoints import MERGED, random_stored, whisper_checkpoint
from tests.submodel.programs import SPECS, base_of, batch_of, fresh, losses_of, shaken


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A Hugging Face folder with what belongs beside the weights, and its base."""
    folder, base = whisper_checkpoint(tmp_path_factory.mktemp("hf") / "hf")
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "README.md").write_text("A card of the original.")
    return open_checkpoint(folder, base)


@pytest.mark.parametrize("name", ["whisper", "conformer-ctc", "conformer-transducer"])
@pytest.mark.parametrize("kind", MERGED)
def test_losses_are_those_of_the_changed_base(name, kind):
    base, batch = base_of(name), batch_of(name)
    submodel = shaken(fresh(name, kind))
    changed = merged_parameters(StoredSubmodel(submodel, SPECS[kind], "ana", base.fingerprint), base)
    merged = jax.tree.map(lambda leaf: leaf, base.params)
    for path, value in changed.items():
        *modules, leaf = path.split("/")
        node = merged
        for module in modules:
            node = node[module]
        assert node[leaf].shape == value.shape
        node[leaf] = value
    expected = losses_of(name, kind)(base.params, submodel, batch)
    np.testing.assert_allclose(losses_of(name)(merged, {}, batch), expected, rtol=1e-4)
    assert np.all(np.abs(expected - losses_of(name)(base.params, {}, batch)) > 1e-2)


@pytest.mark.parametrize("kind", MERGED)
def test_importing_it_gives_the_changed_base_to_the_last_bit(original, tmp_path, kind):
    stored = random_stored(original.base, SPECS[kind])
    made = write_merged(stored, original, tmp_path / "merged")
    expected = flatten(original.base.params) | merged_parameters(stored, original.base)
    found = flatten(read_base(tmp_path / "merged").params)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert made.relative_error == 0
    assert made.dtypes == ("float32",)


def test_what_the_submodel_does_not_change_is_copied(original, tmp_path):
    stored = random_stored(original.base, LoRA(("encoder/layers_1/fc1",)))
    made = write_merged(stored, original, tmp_path / "merged")
    assert made.tensors == 1
    before = read_weights(original.folder / "model.safetensors")
    after = read_weights(tmp_path / "merged/model.safetensors")
    assert before.keys() == after.keys()
    assert [n for n in before if not np.array_equal(before[n], after[n])] == ["model.encoder.layers.1.fc1.weight"]
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"}
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "merged" / name).read_bytes() == (original.folder / name).read_bytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_stays_and_what_it_costs_is_told(tmp_path, dtype):
    folder, base = whisper_checkpoint(tmp_path / "hf", dtype, shards=3)
    stored = random_stored(base, SPECS["lora"])
    made = write_merged(stored, open_checkpoint(folder, base), tmp_path / "merged")
    assert made.dtypes == (np.dtype(dtype).name,)
    assert weight_files(tmp_path / "merged") == weight_files(folder)
    found, before = flatten(read_base(tmp_path / "merged").params), flatten(base.params)
    error, change = 0.0, 0.0
    for path, value in merged_parameters(stored, base).items():
        np.testing.assert_array_equal(found[path], value.astype(dtype).astype(np.float32))
        error += np.square(found[path] - value).sum()
        change += np.square(value - before[path]).sum()
    np.testing.assert_allclose(made.relative_error, (error / change) ** 0.5, rtol=1e-3)
    assert 0 < made.relative_error < 0.1


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    folder, base = whisper_checkpoint(tmp_path / "hf", np.float16)
    stored = random_stored(base, BiasOnly(("encoder/layers_0/fc1",)), scale=1e6)
    with pytest.raises(ExportError, match=r"layers.0.fc1.bias.*not finite in the float16"):
        write_merged(stored, open_checkpoint(folder, base), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_an_embedding_that_is_stored_twice_changes_twice(tmp_path, prefix):
    values = {name.replace("model.", prefix, 1): value for name, value in tensors(tiny_whisper()).items()}
    embedding = f"{prefix}decoder.embed_tokens.weight"
    values["proj_out.weight"] = values[embedding].copy()
    folder = checkpoint(tmp_path / "hf", values)
    base = import_base(folder, tmp_path / "base")
    stored = random_stored(base, FullWeights(("decoder/embed_tokens",)))
    assert write_merged(stored, open_checkpoint(folder, base), tmp_path / "merged").tensors == 2
    after = read_weights(tmp_path / "merged/model.safetensors")
    np.testing.assert_array_equal(after["proj_out.weight"], after[embedding])
    assert not np.array_equal(after[embedding], values[embedding])


def test_adapters_are_refused_with_the_reason(original, tmp_path):
    stored = random_stored(original.base, SPECS["residual-adapter"])
    with pytest.raises(ExportError, match=r"residual-adapter.*no change of its weights.*program"):
        write_merged(stored, original, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_weights_or_sizes_is_refused(original, tmp_path):
    with pytest.raises(ExportError, match=r"other weights.*the first at 'decoder"):
        open_checkpoint(original.folder, tiny_whisper(layers=2, seed=1))
    with pytest.raises(ExportError, match="another model"):
        open_checkpoint(original.folder, tiny_whisper())
    with pytest.raises(BaseModelError, match=r"config\.json"):
        open_checkpoint(tmp_path, original.base)


def test_what_it_is_prompted_for_does_not_matter(tmp_path):
    """A base may be imported for another language than its folder's own; its weights are the same."""
    folder, base = whisper_checkpoint(tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    other = config | {"decoder_start_token_id": 5}
    (folder / "config.json").write_text(json.dumps(other))
    assert read_base(folder).fingerprint != base.fingerprint
    made = write_merged(random_stored(base, LayerNormOnly()), open_checkpoint(folder, base), tmp_path / "merged")
    assert made.tensors > 0


def test_another_base_and_what_is_there_are_refused(original, tmp_path):
    foreign = random_stored(tiny_whisper(), SPECS["lora"])
    with pytest.raises(FingerprintMismatch, match=foreign.base):
        write_merged(foreign, original, tmp_path / "merged")
    Path(tmp_path / "merged").mkdir()
    with pytest.raises(StoreError, match="there already"):
        write_merged(random_stored(original.base, SPECS["lora"]), original, tmp_path / "merged")
