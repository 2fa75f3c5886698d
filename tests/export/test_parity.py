"""What transformers and PEFT make of exports on the same weights: the logits of the base with the Submodel in it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from specialize.base import Base
from specialize.export import open_checkpoint, read_peft, write_merged, write_peft
from specialize.submodel import StoredSubmodel
from tests.bases import random_batch
from tests.export.checkpoints import MERGED, logits_of, random_stored, whisper_checkpoint
from tests.submodel.programs import SPECS
from tests.submodel.submodels import assert_same

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'torch'")
peft = pytest.importorskip("peft", reason="needs the extra 'torch'")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> tuple[Path, Base]:
    folder, base = whisper_checkpoint(tmp_path_factory.mktemp("whisper") / "hf")
    return folder, base.with_context("full")


@pytest.fixture(scope="module")
def heard(whisper) -> tuple[Any, ...]:
    """Audio, samples and tokens for our logits, and features for those of transformers."""
    _, base = whisper
    batch = random_batch(base, rows=2)
    mel, _ = jax.jit(base.architecture.features)(batch.audio, batch.samples)
    return batch.audio, batch.samples, batch.labels, torch.tensor(np.asarray(mel).transpose(0, 2, 1))


def ours(base: Base, heard: Any, stored: StoredSubmodel | None) -> np.ndarray:
    return logits_of(base, stored, *heard[:3])


def theirs(model: Any, heard: Any) -> np.ndarray:
    with torch.no_grad():
        tokens = torch.tensor(heard[2]).long()
        return model.eval()(input_features=heard[3], decoder_input_ids=tokens).logits.numpy()


def loaded(folder: Path) -> Any:
    return transformers.WhisperForConditionalGeneration.from_pretrained(folder)


def test_whisper_with_peft(whisper, heard, tmp_path):
    folder, base = whisper
    stored = random_stored(base, SPECS["lora"], scale=0.2)
    write_peft(stored, base, tmp_path / "peft")
    model = loaded(folder)
    plain = theirs(model, heard)
    np.testing.assert_allclose(ours(base, heard, None), plain, atol=1e-4)
    found = theirs(peft.PeftModel.from_pretrained(model, tmp_path / "peft"), heard)
    np.testing.assert_allclose(ours(base, heard, stored), found, atol=1e-4)
    assert np.abs(found - plain).max() > 0.1


def test_what_peft_made_and_saved_is_imported(whisper, heard, tmp_path):
    folder, base = whisper
    torch.manual_seed(0)
    options = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "fc2"], init_lora_weights=False)
    model = peft.get_peft_model(loaded(folder), options)
    model.save_pretrained(tmp_path / "peft")
    stored = read_peft(tmp_path / "peft", base, speaker="ana")
    expected = theirs(model, heard)
    np.testing.assert_allclose(ours(base, heard, stored), expected, atol=1e-4)
    assert np.abs(expected - ours(base, heard, None)).max() > 0.1
    assert len(stored.submodel) == 10
    write_peft(stored, base, tmp_path / "again")
    assert_same(read_peft(tmp_path / "again", base), stored)


def test_what_peft_saved_again_is_the_same(whisper, tmp_path):
    folder, base = whisper
    stored = random_stored(base, SPECS["lora"])
    write_peft(stored, base, tmp_path / "peft")
    peft.PeftModel.from_pretrained(loaded(folder), tmp_path / "peft").save_pretrained(tmp_path / "again")
    again = read_peft(tmp_path / "again", base, speaker="ana")
    jax.tree.map(np.testing.assert_array_equal, again.submodel, stored.submodel)
    assert (again.spec.rank, again.spec.alpha) == (3, 5.0)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("kind", MERGED)
def test_merged_whisper(whisper, heard, tmp_path, kind):
    folder, base = whisper
    stored = random_stored(base, SPECS[kind])
    write_merged(stored, open_checkpoint(folder, base), tmp_path / "merged")
    found = theirs(loaded(tmp_path / "merged"), heard)
    np.testing.assert_allclose(ours(base, heard, stored), found, atol=1e-4)
    assert np.abs(found - ours(base, heard, None)).max() > 0.1
