"""Programs: what they write is what the recogniser writes, in a process that has nothing of this package."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load_file

from specialize.base import Base
from specialize.errors import BaseModelError, ExportError, FingerprintMismatch, StoreError
from specialize.export import ProgramConfig, write_program, write_safetensors
from specialize.serve import Recognizer
from specialize.submodel import LoRA, ResidualAdapter, StoredSubmodel, inserted
from specialize.submodel.insert import neutral
from tests.bases import TALKING, random_speech, tiny_whisper
from tests.export.checkpoints import random_stored
from tests.submodel.programs import SPECS

SPEC = LoRA(("encoder/**",), rank=2)
SERVICE = """
import json, sys
from pathlib import Path

import jax, numpy as np, tokenizers
from jax import export
from safetensors.numpy import load_file

folder, given = Path(sys.argv[1]), np.load(sys.argv[2])
about = json.loads((folder / "program.json").read_text())
program = min((p for p in about["programs"] if p["samples"] >= given["audio"].shape[1]), key=lambda p: p["samples"])
decode = jax.jit(export.deserialize(bytearray((folder / program["file"]).read_bytes())).call)
base = load_file(folder / "base.safetensors")
audio = np.pad(given["audio"], ((0, 0), (0, program["samples"] - given["audio"].shape[1])))
tokenizer = tokenizers.Tokenizer.from_file(str(folder / about["tokenizer"]["file"]))
texts = {}
for speaker, of in about["submodels"].items():
    rows = np.asarray(decode(base, load_file(folder / of["file"]), audio, given["samples"])).tolist()
    ids = [row[: (row + [about["result"]["end"]]).index(about["result"]["end"])] for row in rows]
    texts[speaker] = [tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids]
assert not any(name.split(".")[0] in ("specialize", "flax", "orbax") for name in sys.modules)
print(json.dumps(texts))
"""
"""A service, as program.json describes it."""


@functools.cache
def talking(name: str) -> Base:
    return TALKING[name]()


def people(base: Base, *speakers: str) -> list[StoredSubmodel]:
    """Submodels that make a base say other things, each its own."""
    stored = [random_stored(base, SPEC, speaker) for speaker in speakers]
    noise = np.random.default_rng(0)
    return [
        dataclasses.replace(
            s, submodel=jax.tree.map(lambda p: p + np.float32(noise.standard_normal(p.shape)), s.submodel)
        )
        for s in stored
    ]


def loaded(folder: Path, number: int = 0):
    """One of the programs, and the weights of the base."""
    about = json.loads((folder / "program.json").read_text())
    program = export.deserialize(bytearray((folder / about["programs"][number]["file"]).read_bytes()))
    return program, load_file(folder / "base.safetensors"), about


def ids_of(base: Base, stored: StoredSubmodel, audio: np.ndarray, samples: np.ndarray, most: int) -> list[list[int]]:
    """What the base decodes with a Submodel in it."""

    def decode(params, submodel, audio, samples):
        with inserted(stored.spec, submodel, params) as changed:
            return base.architecture.decode(changed, audio, samples, max_tokens=most).ids

    return np.asarray(jax.jit(decode)(base.params, stored.submodel, audio, samples)).tolist()


@pytest.mark.parametrize("name", TALKING)
def test_a_service_without_this_package_writes_the_same_texts(name, tmp_path):
    base, (ana, bob) = talking(name), people(talking(name), "Ana/1", "bob")
    write_program([ana, bob], base, tmp_path / "program", ProgramConfig(seconds=(1.0, 2.0, 4.0), platforms=("cpu",)))
    audio, samples = random_speech(base)
    np.savez(tmp_path / "given.npz", audio=audio, samples=samples)
    clips = [row[:n] for row, n in zip(audio, samples, strict=True)]
    expected = {s.speaker: Recognizer(base).transcribe_batch(clips, [s] * len(clips)) for s in (ana, bob)}
    (tmp_path / "service.py").write_text(SERVICE)
    words = [sys.executable, "service.py", "program", "given.npz"]
    ended = subprocess.run(words, cwd=tmp_path, env=_plain(), capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == expected
    assert expected["Ana/1"] != expected["bob"]
    assert len(set(expected["bob"])) > 1


def _plain() -> dict[str, str]:
    """An environment in which this package is not found by accident."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.parametrize("kind", SPECS)
def test_every_kind(kind, tmp_path):
    base = talking("whisper")
    stored = random_stored(base, SPECS[kind], scale=0.2)
    write_program([stored], base, tmp_path / "program", ProgramConfig((2.0,), platforms=("cpu",), max_tokens=12))
    program, weights, about = loaded(tmp_path / "program")
    audio, samples = random_speech(base)
    tensors = load_file(tmp_path / "program" / about["submodels"]["ana"]["file"])
    ids = np.asarray(program.call(weights, tensors, audio, samples)).tolist()
    assert ids == ids_of(base, stored, audio, samples, 12)
    without = dataclasses.replace(stored, submodel=jax.tree.map(np.asarray, neutral(stored.spec, stored.submodel)))
    assert ids != ids_of(base, without, audio, samples, 12)
    assert np.shape(ids) == tuple(4 if n == "rows" else n for n in about["result"]["shape"])


@pytest.mark.parametrize("name", TALKING)
@pytest.mark.parametrize("rows", [None, 2])
def test_rows_with_submodels_of_their_own(name, rows, tmp_path):
    base, stored = talking(name), people(talking(name), "ana", "bob")
    config = ProgramConfig((2.0,), rows=rows, own=True, platforms=("cpu",))
    write_program(stored, base, tmp_path / "program", config)
    program, weights, about = loaded(tmp_path / "program")
    audio, samples = random_speech(base, rows=2)
    audio[1], samples[1] = audio[0], samples[0]
    files = [load_file(tmp_path / "program" / of["file"]) for of in about["submodels"].values()]
    bank = {key: np.stack([file[key] for file in files]) for key in files[0]}
    ids = np.asarray(program.call(weights, bank, audio, samples)).tolist()
    expected = Recognizer(base).transcribe_batch([audio[0, : samples[0]]] * 2, stored)
    assert [base.tokenizer.decode(row) for row in ids] == expected
    assert expected[0] != expected[1]


def test_one_program_is_for_all_platforms_rows_and_later_submodels(tmp_path):
    base, (ana, bob) = talking("whisper"), people(talking("whisper"), "ana", "bob")
    write_program([ana], base, tmp_path / "program", ProgramConfig((1.0,)))
    write_safetensors(bob, tmp_path / "bob.safetensors")
    program, weights, about = loaded(tmp_path / "program")
    assert program.platforms == ("cpu", "cuda", "tpu") == tuple(about["platforms"])
    audio, samples = random_speech(base, seconds=1.0)
    for n in (1, 3):
        ids = np.asarray(program.call(weights, load_file(tmp_path / "bob.safetensors"), audio[:n], samples[:n]))
        clips = [row[:k] for row, k in zip(audio[:n], samples[:n], strict=True)]
        texts = [base.tokenizer.decode(row) for row in ids.tolist()]
        assert texts == Recognizer(base).transcribe_batch(clips, [bob] * n)


def test_how_it_decodes_is_compiled_in(tmp_path):
    base = talking("whisper")
    stored = random_stored(base, SPECS["lora"], scale=0.5)
    config = ProgramConfig((2.0,), platforms=("cpu",), context="full", tokens_per_second=2.0, max_tokens=20)
    write_program([stored], base, tmp_path / "program", config)
    program, weights, about = loaded(tmp_path / "program")
    audio, samples = random_speech(base)
    tensors = load_file(tmp_path / "program" / about["submodels"]["ana"]["file"])
    ids = np.asarray(program.call(weights, tensors, audio, samples)).tolist()
    assert ids == ids_of(base.with_context("full").with_tokens_per_second(2.0), stored, audio, samples, 20)
    for other in (base.with_context("full"), base.with_tokens_per_second(2.0)):
        assert ids != ids_of(other, stored, audio, samples, 20)


@pytest.mark.parametrize("name", ["conformer-ctc", "conformer-transducer"])
def test_a_beam(name, tmp_path):
    base, stored = talking(name), people(talking(name), "ana")[0]
    config = ProgramConfig((2.0,), platforms=("cpu",), beam=3, max_tokens=20)
    write_program([stored], base, tmp_path / "program", config)
    program, weights, about = loaded(tmp_path / "program")
    audio, samples = random_speech(base)
    tensors = load_file(tmp_path / "program" / about["submodels"]["ana"]["file"])
    ids = np.asarray(program.call(weights, tensors, audio, samples)).tolist()
    assert ids == ids_of(base.with_beam(3), stored, audio, samples, 20)
    assert ids != ids_of(base, stored, audio, samples, 20)


def test_what_is_said_of_it(tmp_path):
    base = tiny_whisper()
    helps, harms = (random_stored(base, SPEC, name, beats_base_on_dev=name == "ana") for name in ("ana", "bob"))
    write_program(iter([helps, harms]), base, tmp_path / "program", ProgramConfig(rows=3, platforms=("cpu",)))
    program, weights, about = loaded(tmp_path / "program")
    assert (about["base"], about["sample_rate"], about["rows"]) == (base.fingerprint, 16_000, 3)
    assert [p["samples"] for p in about["programs"]] == [base.architecture.max_samples]
    assert {speaker: of["helps"] for speaker, of in about["submodels"].items()} == {"ana": True, "bob": False}
    assert about["result"]["shape"] == ["rows", base.architecture.max_labels]
    assert program.out_avals[0].shape == (3, base.architecture.max_labels)
    assert [argument["name"] for argument in about["arguments"]] == ["base", "submodel", "audio", "samples"]
    assert sum(value.size for value in weights.values()) == sum(leaf.size for leaf in jax.tree.leaves(base.params))
    files = {
        str(path.relative_to(tmp_path / "program")) for path in (tmp_path / "program").rglob("*") if path.is_file()
    }
    listed = {p["file"] for p in about["programs"]} | {of["file"] for of in about["submodels"].values()}
    assert files == listed | {"program.json", "base.safetensors", "tokenizer.json"}
    assert (tmp_path / "program" / about["programs"][0]["file"]).stat().st_size < 1e6  # the weights are not in it


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"seconds": (6.0,)}, ExportError, r"seconds=6, .* up to 5 s"),
        ({"seconds": (0.0,)}, ExportError, "seconds=0"),
        ({"seconds": (float("nan"),)}, ExportError, "seconds=nan"),
        ({"beam": 2}, BaseModelError, "decodes greedily"),
        ({"rows": 0}, ExportError, "rows=0"),
        ({"platforms": ()}, ExportError, "at least one platform"),
        ({"max_tokens": 1000}, ExportError, r"max_tokens=1000.*1 to 62"),
        ({"max_tokens": 0}, ExportError, r"max_tokens=0"),
    ],
)
def test_what_it_cannot_be_compiled_for_is_named_and_nothing_is_written(tmp_path, fields, error, message):
    stored = random_stored(tiny_whisper(), SPEC)
    with pytest.raises(error, match=message):
        write_program([stored], tiny_whisper(), tmp_path / "program", ProgramConfig(**fields))
    assert list(tmp_path.iterdir()) == []


def test_submodels_that_no_one_program_takes_are_refused(tmp_path):
    base, config = tiny_whisper(), ProgramConfig((1.0,), platforms=("cpu",))
    ana, bob = random_stored(base, SPEC), random_stored(base, ResidualAdapter(bottleneck=2), "bob")
    with pytest.raises(ExportError, match=r"'ana' and 'bob' differ.*--speakers"):
        write_program([ana, bob], base, tmp_path / "program", config)
    with pytest.raises(ExportError, match="no Submodels"):
        write_program([], base, tmp_path / "program", config)
    with pytest.raises(FingerprintMismatch, match=tiny_whisper(seed=1).fingerprint):
        write_program([ana], tiny_whisper(seed=1), tmp_path / "program", config)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "program").mkdir()
    with pytest.raises(StoreError, match="there already"):
        write_program([ana], base, tmp_path / "program", config)
