"""As `test_parity`, for Parakeets: convolutions, batch norms and LSTMs."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from specialize.base import Base, import_base
from specialize.errors import ExportError
from specialize.export import open_checkpoint, read_peft, write_merged, write_peft
from specialize.submodel import LoRA, StoredSubmodel, find_sites
from tests.export.checkpoints import MERGED, logits_of, random_stored
from tests.submodel.programs import SPECS
from tests.submodel.submodels import assert_same

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT asks for it
]

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
transformers = pytest.importorskip("transformers", reason="needs the extra 'torch'")
peft = pytest.importorskip("peft", reason="needs the extra 'torch'")
parakeets = pytest.importorskip("tests.base.test_parakeet", reason="needs a transformers with Parakeet")

ENCODER = ("encoder/**/self_attn/*", "encoder/**/conv/*", "encoder/**/linear*")
TRANSDUCER = ("encoder_projector", "decoder/decoder_projector", "joint/head")
"""Together, all that PEFT can adapt."""


@pytest.fixture(scope="module", params=parakeets.KINDS)
def parakeet(request, tmp_path_factory) -> tuple[Any, Path, Base]:
    """Their class, a folder of a random model of it, and the base imported from that."""
    model = parakeets.model_of(request.param, layers=1)
    folder = tmp_path_factory.mktemp("parakeet") / "hf"
    model.save_pretrained(folder)
    transformers.ParakeetFeatureExtractor().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(parakeets.definition())
    return type(model), folder, import_base(folder, folder.parent / "base")


def parakeet_logits(base: Base, stored: StoredSubmodel | None, spoken: Any, texts: np.ndarray) -> list[np.ndarray]:
    """Of each row, its own frames."""
    more = (texts,) if hasattr(base.architecture, "transducer") else ()
    found = logits_of(base, stored, *spoken, *more)
    return [row[:n] for row, n in zip(found, frames_of(base, spoken), strict=True)]


def frames_of(base: Base, spoken: Any) -> list[int]:
    architecture: Any = base.architecture
    return np.asarray(architecture.frames(jnp.asarray(spoken[1]))).tolist()


def their_logits(model: Any, base: Base, spoken: Any, texts: np.ndarray) -> list[np.ndarray]:
    inputs, blank = parakeets.heard(spoken), base.tokenizer.end
    more = {}
    if hasattr(base.architecture, "transducer"):
        more = {"decoder_input_ids": torch.tensor(np.pad(texts, ((0, 0), (1, 0)), constant_values=blank)).long()}
    with torch.no_grad():
        out = model.eval()(input_features=inputs.input_features, attention_mask=inputs.attention_mask, **more).logits
    return [row[:n] for row, n in zip(out.numpy(), frames_of(base, spoken), strict=True)]


def assert_close(found: list[np.ndarray], expected: list[np.ndarray], plain: list[np.ndarray]) -> None:
    for one, two, other in zip(found, expected, plain, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4, rtol=1e-5)
        assert np.abs(one - other).max() > 0.05


TEXTS = np.array([[2, 3, 4], [5, 5, 6], [7, 8, 9]], np.int32)


def test_parakeet_with_peft(parakeet, tmp_path):
    cls, folder, base = parakeet
    spoken = parakeets.speech()
    where = ENCODER if cls.__name__.endswith("CTC") else (*ENCODER, *TRANSDUCER)
    stored = random_stored(base, LoRA(where, rank=3, alpha=5.0))
    write_peft(stored, base, tmp_path / "peft")
    found = their_logits(
        peft.PeftModel.from_pretrained(cls.from_pretrained(folder), tmp_path / "peft"), base, spoken, TEXTS
    )
    assert_close(found, parakeet_logits(base, stored, spoken, TEXTS), parakeet_logits(base, None, spoken, TEXTS))
    assert_same(read_peft(tmp_path / "peft", base), stored)


@pytest.mark.parametrize("kind", MERGED)
def test_merged_parakeet(parakeet, tmp_path, kind):
    """Convolutions and LSTMs too, which PEFT does not adapt."""
    cls, folder, base = parakeet
    spoken = parakeets.speech()
    stored = random_stored(base, SPECS[kind], scale=0.02)
    write_merged(stored, open_checkpoint(folder, base), tmp_path / "merged")
    found = their_logits(cls.from_pretrained(tmp_path / "merged"), base, spoken, TEXTS)
    assert_close(found, parakeet_logits(base, stored, spoken, TEXTS), parakeet_logits(base, None, spoken, TEXTS))


def test_all_that_peft_does_not_adapt_alike_is_refused_and_nothing_else(parakeet, tmp_path):
    cls, folder, base = parakeet
    head = cls.__name__.endswith("CTC")
    everywhere = {site.path for site in find_sites(LoRA(("**",)), base.architecture, base.params)}
    adapted = {
        site.path
        for site in find_sites(LoRA(ENCODER if head else (*ENCODER, *TRANSDUCER)), base.architecture, base.params)
    }
    assert any("subsampling/layers" in path for path in everywhere - adapted)
    for path in everywhere - adapted:
        with pytest.raises(ExportError, match=f"{path}.*in transformers is"):
            write_peft(random_stored(base, LoRA((path,))), base, tmp_path / "peft")
    convolution = "ctc_head" if head else "encoder.subsampling.layers.3"
    options = peft.LoraConfig(r=2, target_modules=[convolution])
    peft.get_peft_model(cls.from_pretrained(folder), options).save_pretrained(tmp_path / "peft")
    with pytest.raises(ExportError, match=f"adapts '{convolution}'.*without that module"):
        read_peft(tmp_path / "peft", base, speaker="ana")
