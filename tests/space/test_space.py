"""A stored space comes back, exports exactly what it generates, and says who is near whom."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from specialize.errors import FingerprintMismatch, StoreError
from specialize.space import Linear, Space, fit_linear, load_space, nearest, principal, save_space
from specialize.space.look import describe_space
from specialize.submodel import load_submodel, save_submodel
from tests.space.spaces import GENERATED, points, small_space
from tests.submodel.programs import SPECS, fresh, shaken
from tests.submodel.submodels import BASE, stored

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""Orbax awaits the first array that fails to load; that others fail too is told to nobody, after its loop is closed."""


def assert_same(left: Space, right: Space) -> None:
    assert (left.generator, left.spec, left.base) == (right.generator, right.spec, right.base)
    assert (left.training, left.facts) == (right.training, right.facts)
    assert list(left.speakers()) == list(right.speakers())
    jax.tree.map(np.testing.assert_array_equal, left.shared, right.shared)
    jax.tree.map(np.testing.assert_array_equal, left.embeddings, right.embeddings)


@pytest.mark.parametrize("name", GENERATED)
def test_a_space_comes_back_bit_for_bit(name, tmp_path):
    space = small_space(name, kind="residual-adapter", dev_loss=0.5, beats_base_on_dev=True)
    save_space(tmp_path / "space", space)
    assert_same(load_space(tmp_path / "space", base=BASE), space)


@pytest.mark.parametrize("name", GENERATED)
def test_what_is_exported_is_what_is_generated_bit_for_bit(name, tmp_path):
    space = small_space(name, dev_loss=0.5, beats_base_on_dev=False)
    save_space(tmp_path / "space", space)
    for speaker in ("ana0", "ana3"):
        made = load_space(tmp_path / "space").submodel(speaker)
        expected = jax.jit(space.generator.generate)(space.shared, space.embeddings[speaker])
        jax.tree.map(np.testing.assert_array_equal, made.submodel, jax.device_get(expected))
        save_submodel(tmp_path / speaker, made)
        loaded = load_submodel(tmp_path / speaker, base=BASE)
        jax.tree.map(np.testing.assert_array_equal, loaded.submodel, made.submodel)
        assert (loaded.speaker, loaded.spec, loaded.helps) == (speaker, space.spec, False)
        assert loaded.training["dev_loss"] == 0.5
        assert ("embedding" in loaded.training) == (name != "one-hot")


def test_a_point_between_two_speakers_is_a_submodel():
    space = small_space()
    half = space.submodel_at((space.embeddings["ana0"] + space.embeddings["ana1"]) / 2, "halfway")
    ends = [space.submodel(name).submodel for name in ("ana0", "ana1")]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose((a + b) / 2, c, rtol=1e-4, atol=1e-6), *ends, half.submodel)
    assert half.speaker == "halfway"


def test_another_base_is_refused_naming_both(tmp_path):
    save_space(tmp_path / "space", small_space())
    with pytest.raises(FingerprintMismatch, match=f"space.*{BASE}.*{'e' * 32}"):
        load_space(tmp_path / "space", base="e" * 32)
    with pytest.raises(FingerprintMismatch, match=f"'ana1'.*{BASE}.*{'e' * 32}"):
        load_space(tmp_path / "space").submodel("ana1", base="e" * 32)


def test_unknown_speakers_are_refused():
    with pytest.raises(StoreError, match=r"no speaker 'bob'.*ana0"):
        small_space().submodel("bob")
    with pytest.raises(StoreError, match="no speaker 'bob'"):
        nearest(small_space(), "bob")


def test_overwriting_needs_leave_and_a_space(tmp_path):
    save_space(tmp_path / "space", small_space())
    with pytest.raises(StoreError, match="there already"):
        save_space(tmp_path / "space", small_space("hypernetwork"))
    save_space(tmp_path / "space", small_space("hypernetwork"), overwrite=True)
    assert_same(load_space(tmp_path / "space"), small_space("hypernetwork"))
    save_submodel(tmp_path / "one", stored())
    with pytest.raises(StoreError, match="not a space"):
        save_space(tmp_path / "one", small_space(), overwrite=True)
    assert load_submodel(tmp_path / "one").speaker == "ana"
    with pytest.raises(StoreError, match="not a Submodel"):
        load_submodel(tmp_path / "space")


def test_each_file_in_turn_missing_cut_or_filled_with_zeros(tmp_path):
    space = small_space()
    save_space(tmp_path / "whole", space)
    files = [path.relative_to(tmp_path / "whole") for path in sorted((tmp_path / "whole").rglob("*")) if path.is_file()]
    refused: set[tuple[Path, str]] = set()
    for number, file in enumerate(files):
        for way in ("missing", "cut", "zeros"):
            path: Path = tmp_path / f"{number}-{way}"
            shutil.copytree(tmp_path / "whole", path)
            content = (path / file).read_bytes()
            (path / file).unlink()
            if way != "missing":
                (path / file).write_bytes(content[: len(content) // 2] if way == "cut" else bytes(len(content)))
            try:
                assert_same(load_space(path), space)
            except StoreError:
                refused.add((file, way))
    # Orbax writes some values into two files, and not always into the same ones, but never all of them.
    for way in ("missing", "cut", "zeros"):
        assert (Path("_CHECKPOINT_METADATA"), way) in refused
        assert any(of == way and file.parts[0] == "state" for file, of in refused)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [("generator", {"kind": "sphere"}, "'sphere'"), ("speakers", ["ana"], "damaged"), ("spec", 3, "for spec")],
)
def test_metadata_that_a_person_edited(tmp_path, entry, value, message):
    save_space(tmp_path / "space", small_space())
    file = tmp_path / "space/_CHECKPOINT_METADATA"
    data = json.loads(file.read_text())
    data["custom_metadata"][entry] = value
    file.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=message):
        load_space(tmp_path / "space")


@pytest.mark.parametrize("name", GENERATED)
def test_the_nearest_are_in_order_and_leave_out_oneself(name):
    space = small_space(name)
    near = nearest(space, "ana2", 10)
    assert [speaker for speaker, _ in near if speaker == "ana2"] == []
    assert len(near) == 5
    assert [d for _, d in near] == sorted(d for _, d in near)
    (first, distance), *_ = nearest(space, space.embeddings["ana2"], 3)
    assert first == "ana2"
    assert distance < 1e-6 < near[0][1]


def test_distances_in_a_linear_space_are_those_of_the_submodels():
    space = small_space()
    one = space.submodel("ana0").submodel
    for speaker, distance in nearest(space, "ana0"):
        other = space.submodel(speaker).submodel
        square = sum(np.square(a - b).sum() for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
        np.testing.assert_allclose(distance, np.sqrt(square), rtol=1e-3)


def test_turning_and_scaling_a_linear_space_changes_nothing_that_is_looked_at():
    """Training may find any of the spaces that make the same Submodels."""
    space = small_space()
    k = space.generator.embedding_size(space.shared["mean"])
    turn = np.random.default_rng(5).standard_normal((k, k)) + 2 * np.eye(k)
    back = np.linalg.inv(turn)
    basis = jax.tree.map(
        lambda b: np.tensordot(back, b.astype(np.float64), axes=1).astype(np.float32), space.shared["basis"]
    )
    embeddings = {name: (e @ turn).astype(np.float32) for name, e in space.embeddings.items()}
    shared = {"mean": space.shared["mean"], "basis": basis}
    turned = Space(space.generator, space.spec, space.base, shared, embeddings)
    one, two = principal(space), principal(turned)
    np.testing.assert_allclose(one.explained, two.explained, atol=1e-4)
    for speaker in space.speakers():
        assert [s for s, _ in nearest(space, speaker, 3)] == [s for s, _ in nearest(turned, speaker, 3)]


def test_principal_coordinates_of_speakers_and_of_points_agree():
    for name in GENERATED:
        space = small_space(name)
        of = principal(space)
        np.testing.assert_allclose(of.explained.sum(), 1.0)
        assert (np.diff(of.explained) <= 1e-12).all()
        for row, speaker in enumerate(of.speakers):
            np.testing.assert_allclose(of.place(space.embeddings[speaker]), of.coordinates[row], atol=1e-6)


def test_principal_coordinates_find_the_direction_that_speakers_differ_in():
    generator, template = Linear(dim=3), fresh("whisper", "lora")
    ends = [shaken(template, seed=s) for s in (1, 2, 3, 4)]
    shared, embeddings, _ = fit_linear(ends, 3)
    embeddings = embeddings * np.array([10.0, 1.0, 0.1], np.float32)
    named = {f"s{i}": e for i, e in enumerate(embeddings)}
    of = principal(Space(generator, SPECS["lora"], BASE, shared, named))
    assert of.explained[0] > 0.9
    ranked = np.argsort(embeddings[:, 0])
    assert np.argsort(of.coordinates[:, 0]).tolist() in (ranked.tolist(), ranked[::-1].tolist())


def test_a_space_of_one_speaker_can_be_looked_at():
    space = small_space(speakers=1)
    assert nearest(space, "ana0") == []
    assert np.isfinite(principal(space).explained).all()
    assert any("speakers" in line for line in describe_space(space))


def test_a_description_says_what_there_is():
    text = "\n".join(describe_space(small_space(speakers=5)))
    assert "linear" in text
    assert "5 plain Submodels" in text
    assert "ana0: ana" in text
    assert points(GENERATED["linear"], fresh("whisper", "lora")).shape[1] == 5
