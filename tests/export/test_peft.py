"""Folders of PEFT: what is written comes back, and what no Submodel can be is refused with the reason."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from specialize.errors import ExportError, FingerprintMismatch, StoreError
from specialize.export import read_peft, write_peft
from specialize.submodel import LoRA
from tests.bases import tiny_conformer_ctc, tiny_parakeet_tdt, tiny_whisper
from tests.export.checkpoints import random_stored
from tests.submodel.programs import SPECS
from tests.submodel.submodels import assert_same

SPEC = LoRA(("**",), rank=3, alpha=5.0)
PARAKEET = LoRA(("encoder/**/self_attn/*", "encoder/**/pointwise_*", "**/linear1", "joint/head"), rank=3, alpha=0.75)


@pytest.fixture
def folder(tmp_path) -> Path:
    """What is exported of the tiny Whisper."""
    write_peft(random_stored(tiny_whisper(), SPEC, steps=3), tiny_whisper(), tmp_path / "peft", name="org/model")
    return tmp_path / "peft"


def changed(folder: Path, **options: object) -> None:
    """Writes other options into a folder of PEFT."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def foreign(folder: Path, change=lambda tensors: tensors) -> None:
    """Writes the tensors again, as PEFT does: without what the header says of the Submodel."""
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize(("make", "spec"), [(tiny_whisper, SPEC), (tiny_parakeet_tdt, PARAKEET)])
def test_what_was_exported_comes_back_bit_for_bit(tmp_path, make, spec):
    stored = random_stored(make(), spec, "Ünä", steps=3, beats_base_on_dev=False)
    write_peft(stored, make(), tmp_path / "peft")
    assert_same(read_peft(tmp_path / "peft", make()), stored)
    assert read_peft(tmp_path / "peft", make(), speaker="bob").speaker == "bob"
    assert [path.name for path in tmp_path.iterdir()] == ["peft"]


def test_names_and_shapes_are_those_of_peft(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 3, 5)
    assert config["base_model_name_or_path"] == "org/model"
    tensors = load_file(folder / "adapter_model.safetensors")
    written = {f"base_model.model.{name}.lora_{part}.weight" for name in config["target_modules"] for part in "AB"}
    assert tensors.keys() == written
    assert "model.encoder.layers.0.self_attn.q_proj" in config["target_modules"]
    assert tensors["base_model.model.model.encoder.layers.0.fc1.lora_A.weight"].shape == (3, 16)
    assert tensors["base_model.model.model.encoder.layers.0.fc1.lora_B.weight"].shape == (32, 3)


def test_what_peft_wrote_says_where_it_is_but_not_whose(folder):
    foreign(folder)
    with pytest.raises(StoreError, match="--speaker"):
        read_peft(folder, tiny_whisper())
    ours, read = random_stored(tiny_whisper(), SPEC), read_peft(folder, tiny_whisper(), speaker="ana")
    assert read.spec == LoRA(tuple(read.submodel), rank=3, alpha=5.0)
    assert read.submodel.keys() == ours.submodel.keys()
    assert (read.speaker, read.base, read.training) == ("ana", tiny_whisper().fingerprint, {})
    jax.tree.map(np.testing.assert_array_equal, read.submodel, ours.submodel)


def test_an_adapter_of_some_modules_in_half_precision_on_the_model_without_its_head(folder):
    stem = "base_model.model.model.encoder"
    foreign(
        folder,
        lambda tensors: {
            name.replace("base_model.model.model.", "base_model.model."): value.astype(ml_dtypes.bfloat16)
            for name, value in tensors.items()
            if name.startswith(stem)
        },
    )
    read, ours = read_peft(folder, tiny_whisper(), speaker="ana"), random_stored(tiny_whisper(), SPEC).submodel
    assert read.submodel.keys() == {path for path in ours if path.startswith("encoder")}
    for path, weights in read.submodel.items():
        for name, value in weights.items():
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, ours[path][name].astype(ml_dtypes.bfloat16).astype(np.float32))


@pytest.mark.parametrize("kind", [kind for kind in SPECS if kind != "lora"])
def test_other_kinds_are_refused(tmp_path, kind):
    with pytest.raises(ExportError, match=f"{kind}.*LoRA only.*safetensors"):
        write_peft(random_stored(tiny_whisper(), SPECS[kind]), tiny_whisper(), tmp_path / "peft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [("decoder/lstm_0/input", "LSTM"), ("encoder/subsampling/layers_3", "padding")],
)
def test_modules_that_peft_cannot_adapt_are_refused(tmp_path, path, reason):
    base = tiny_parakeet_tdt()
    with pytest.raises(ExportError, match=f"{path}.*{reason}.*merged"):
        write_peft(random_stored(base, LoRA((path,))), base, tmp_path / "peft")


def test_a_base_that_transformers_does_not_have_is_refused_both_ways(folder, tmp_path):
    base = tiny_conformer_ctc()
    with pytest.raises(ExportError, match="conv_norm='layer'"):
        write_peft(random_stored(base, LoRA()), base, tmp_path / "other")
    foreign(folder)
    with pytest.raises(ExportError, match="conv_norm='layer'"):
        read_peft(folder, base, speaker="ana")


def test_another_base_is_refused(folder, tmp_path):
    with pytest.raises(FingerprintMismatch, match=tiny_whisper(width=8).fingerprint):
        read_peft(folder, tiny_whisper(width=8))
    other = tiny_whisper(seed=1)
    with pytest.raises(FingerprintMismatch, match=other.fingerprint):
        read_peft(folder, other)
    with pytest.raises(FingerprintMismatch, match=other.fingerprint):
        write_peft(random_stored(tiny_whisper(), SPEC), other, tmp_path / "other")


def test_nothing_is_replaced(folder):
    with pytest.raises(StoreError, match="there already"):
        write_peft(random_stored(tiny_whisper(), SPEC), tiny_whisper(), folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "use_dora=True"),
        ({"use_rslora": True}, "use_rslora=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
        ({"rank_pattern": {"fc1": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"fc1": 8}}, "alpha_pattern"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save"),
        ({"something_new": 1}, "something_new=1"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_options_that_change_the_path_are_refused_by_name(folder, options, message):
    changed(folder, **options)
    with pytest.raises(ExportError, match=message):
        read_peft(folder, tiny_whisper())


@pytest.mark.parametrize("options", [{"r": "three"}, {"r": 0}, {"lora_alpha": None}, {"r": True}])
def test_options_that_are_damaged_are_named(folder, options):
    changed(folder, **options)
    with pytest.raises(StoreError, match=f"damaged.*{next(iter(options))}"):
        read_peft(folder, tiny_whisper())


def test_options_that_only_say_how_it_was_trained_do_not_matter(folder):
    changed(folder, lora_dropout=0.1, init_lora_weights="gaussian", target_modules="all-linear", task_type="X", r=3)
    changed(folder, exclude_modules=["proj_out"], layers_to_transform=[0], use_dora=False, megatron_config=None)
    assert_same(read_peft(folder, tiny_whisper()), random_stored(tiny_whisper(), SPEC, steps=3))


_FC1 = "base_model.model.model.encoder.layers.0.fc1.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {_FC1: np.zeros((4, 16), np.float32)}, r"fc1.lora_A.*\(4, 16\).*r=3.*\(3, 16\).*One rank"),
        (lambda t: t | {_FC1.replace("layers.0", "layers.7"): t[_FC1]}, r"no module of this base.*layers\.7\.fc1"),
        (lambda t: t | {_FC1.replace("lora_A", "lora_embedding_A"): t[_FC1]}, "lora_embedding_A"),
        (lambda t: {n: v for n, v in t.items() if n != _FC1.replace("lora_A", "lora_B")}, "fc1.lora_B.*is missing"),
        (lambda _: {"a": np.zeros(1, np.float32)}, "no module of this base"),
        (lambda _: {}, "no tensors of LoRA"),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_named(folder, change, message):
    foreign(folder, change)
    with pytest.raises(ExportError, match=message):
        read_peft(folder, tiny_whisper(), speaker="ana")


def test_what_is_no_folder_of_peft_is_refused(folder, tmp_path):
    with pytest.raises(StoreError, match=r"no adapter_config.json"):
        read_peft(tmp_path, tiny_whisper())
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StoreError, match="checksum"):
        read_peft(folder, tiny_whisper())
    weights.rename(folder / "adapter_model.bin")
    with pytest.raises(StoreError, match="save_pretrained"):
        read_peft(folder, tiny_whisper())
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(StoreError, match="no LoRA at"):
        read_peft(folder, tiny_whisper())
    for text, message in (("{", "damaged"), ("[]", "no options"), ("{}", "no options")):
        config.write_text(text)
        with pytest.raises(StoreError, match=message):
            read_peft(folder, tiny_whisper())
