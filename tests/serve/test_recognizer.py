"""The recogniser: every row of a batch as alone, with its own Submodel, in the order that was asked."""

import jax
import numpy as np
import pytest
import soundfile

from specialize.base import Base
from specialize.errors import CorpusError, FingerprintMismatch
from specialize.serve import Recognizer
from specialize.submodel import (
    FullWeights,
    LoRA,
    ResidualAdapter,
    StoredSubmodel,
    find_sites,
    init_submodel,
    save_submodel,
)
from tests.bases import TALKING, tiny_whisper


def stored(spec, seed: int, base: Base | None = None) -> StoredSubmodel:
    base = base or tiny_whisper()
    submodel = init_submodel(spec, find_sites(spec, base.architecture, base.params), jax.random.key(seed))
    rng = np.random.default_rng(seed)
    submodel = jax.tree.map(lambda leaf: np.asarray(leaf + 0.3 * rng.standard_normal(leaf.shape), np.float32), submodel)
    return StoredSubmodel(submodel, spec, f"s{seed}", base.fingerprint)


@pytest.fixture(scope="module")
def clips() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (9_000, 20_000, 5_000, 14_000, 16_000)]


@pytest.mark.parametrize("name", TALKING)
def test_a_mixed_batch_is_every_row_alone(name, clips):
    base = TALKING[name]()
    adapter = ResidualAdapter(bottleneck=2)
    specs = adapter, None, LoRA(rank=2), FullWeights(("encoder/layers_0",)), adapter
    mixed = [None if spec is None else stored(spec, seed, base) for seed, spec in enumerate(specs)]
    together = Recognizer(base, batch=2).transcribe_batch(clips, mixed)
    single = Recognizer(base, batch=1)
    assert together == [single.transcribe(clip, one) for clip, one in zip(clips, mixed, strict=True)]
    plain = single.transcribe_batch(clips)
    assert together[1] == plain[1]
    assert together != plain


def test_streamed_rows_carry_their_place(clips):
    recognizer = Recognizer(tiny_whisper(), batch=2)
    streamed = dict(recognizer.stream(clips))
    assert [streamed[row] for row in range(5)] == recognizer.transcribe_batch(clips)


def test_files_and_paths(tmp_path, clips):
    soundfile.write(tmp_path / "a.wav", clips[0], 16_000, subtype="FLOAT")
    one = stored(LoRA(rank=2), 1)
    save_submodel(tmp_path / "one", one)
    recognizer = Recognizer(tiny_whisper(), batch=1)
    assert recognizer.transcribe(tmp_path / "a.wav", tmp_path / "one") == recognizer.transcribe(clips[0], one)


def test_what_cannot_be_transcribed(tmp_path, clips):
    recognizer = Recognizer(tiny_whisper(), batch=1)
    for audio, reason in (
        (np.zeros(0, np.float32), "vector"),
        (np.zeros((2, 100), np.float32), "vector"),
        (np.full(100, np.nan, np.float32), "not finite"),
        (np.zeros(16_000 * 6, np.float32), "longer than this base takes"),
        (tmp_path / "none.wav", "cannot be read"),
    ):
        with pytest.raises(CorpusError, match=reason):
            recognizer.transcribe(audio)
    foreign = stored(LoRA(rank=2), 1)
    with pytest.raises(FingerprintMismatch, match="e" * 32):
        recognizer.transcribe(clips[0], StoredSubmodel(foreign.submodel, foreign.spec, "x", "e" * 32))
    with pytest.raises(ValueError, match="5 utterances, but 1 Submodels"):
        recognizer.transcribe_batch(clips, [None])
