"""A compact store: exact or nearly so, small, as quick with many speakers as with few, and never silently wrong."""

import json
import tracemalloc
from pathlib import Path
from random import Random

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from specialize.errors import FingerprintMismatch, StoreError
from specialize.space import CompactStore, Linear, Space, write_compact
from specialize.space import compact as layout
from tests.space.spaces import small_space
from tests.submodel.submodels import BASE, SPEC

RANK = 64
IDS = ["", "ana", "ANA", "ä ö/ü.. \N{SNOWMAN}", "\udcff", "a" * 5000, "x\0y", "ana\n", " "]
"""What a manifest may call people."""


def many(speakers: int) -> Space:
    """A space of rank 64 over a Submodel of few parameters."""
    rng = np.random.default_rng(0)
    mean = {"encoder/layers_0/fc1": {"a": rng.standard_normal((16, 2)), "b": rng.standard_normal((2, 32))}}
    mean = jax.tree.map(lambda leaf: leaf.astype(np.float32), mean)
    basis = jax.tree.map(lambda leaf: rng.standard_normal((RANK, *leaf.shape)).astype(np.float32), mean)
    e = rng.standard_normal((speakers, RANK)).astype(np.float32)
    ids = [f"speaker-{i:07d}" for i in range(speakers)]
    return Space(Linear(RANK), SPEC, BASE, {"mean": mean, "basis": basis}, dict(zip(ids, e, strict=True)))


@pytest.fixture(scope="module")
def hundred_thousand(tmp_path_factory) -> tuple[Space, Path]:
    space, path = many(100_000), tmp_path_factory.mktemp("compact") / "many.safetensors"
    write_compact(space, path)
    return space, path


def assert_close(left, right, atol) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=0), left, right)


def test_in_float32_everything_comes_back_bit_for_bit(tmp_path):
    space = small_space(kind="residual-adapter", dev_loss=0.5, base_dev_loss=0.75, beats_base_on_dev=True)
    written = write_compact(space, tmp_path / "some.safetensors", dtype="float32")
    assert (written.largest_error, written.relative_error, written.speakers) == (0.0, 0.0, 6)
    store = CompactStore(tmp_path / "some.safetensors")
    assert len(store) == 6
    assert list(store.speakers()) == list(space.speakers())
    for speaker in space.speakers():
        ours, theirs = space.submodel(speaker), store.load(speaker, base=BASE)
        jax.tree.map(np.testing.assert_array_equal, ours.submodel, theirs.submodel)
        assert (theirs.speaker, theirs.spec, theirs.base) == (speaker, space.spec, BASE)
        assert theirs.training == ours.training


def test_in_float16_the_error_is_small_and_is_told(tmp_path):
    space = small_space(kind="residual-adapter")
    written = write_compact(space, tmp_path / "half.safetensors")
    store = CompactStore(tmp_path / "half.safetensors")
    worst = 0.0
    for speaker in space.speakers():
        pairs = zip(*(jax.tree.leaves(of.submodel(speaker).submodel) for of in (space,)), strict=True)
        theirs = jax.tree.leaves(store.load(speaker).submodel)
        worst = max(worst, *(float(np.abs(a - b).max()) for (a,), b in zip(pairs, theirs, strict=True)))
    np.testing.assert_allclose(written.largest_error, worst, rtol=1e-6)
    assert 0 < written.relative_error < 1e-3


def test_values_too_small_for_float16_keep_their_precision(tmp_path):
    space = small_space()
    shared = space.shared | {"basis": jax.tree.map(lambda b: 1e-9 * b, space.shared["basis"])}
    tiny = Space(space.generator, space.spec, space.base, shared, {s: 1e9 * e for s, e in space.embeddings.items()})
    assert write_compact(tiny, tmp_path / "tiny.safetensors").relative_error < 1e-3


def test_any_id_is_found_and_no_other_is(tmp_path):
    space = many(len(IDS))
    named = dict(zip(IDS, space.embeddings.values(), strict=True))
    write_compact(Space(space.generator, SPEC, BASE, space.shared, named), tmp_path / "ids", dtype="float32")
    store = CompactStore(tmp_path / "ids")
    assert list(store.speakers()) == IDS
    for id_, e in named.items():
        assert id_ in store
        assert store.load(id_).training["embedding"] == e.tolist()
    for other in ("bob", "an", "ana ", "\n", "a" * 4999):
        assert other not in store
        with pytest.raises(StoreError, match="no speaker"):
            store.load(other)


def test_ids_whose_hashes_collide_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "_hash", lambda id_: 7)
    space = many(40)
    write_compact(space, tmp_path / "colliding", dtype="float32")
    store = CompactStore(tmp_path / "colliding")
    for speaker, e in space.embeddings.items():
        assert store.load(speaker).training["embedding"] == e.tolist()
    assert "bob" not in store


def test_losses_that_are_not_known_and_the_gate_survive(tmp_path):
    space = small_space()
    facts = {"ana0": {"beats_base_on_dev": False, "dev_loss": 0.5}, "ana1": {"dev_loss": None}}
    space = Space(space.generator, space.spec, BASE, space.shared, space.embeddings, {}, facts)
    write_compact(space, tmp_path / "some")
    store = CompactStore(tmp_path / "some")
    assert not store.load("ana0").helps
    assert set(store.load("ana0").training) == {"beats_base_on_dev", "dev_loss", "embedding"}
    assert set(store.load("ana1").training) == {"embedding"}
    assert store.load("ana1").helps


def test_a_hundred_thousand_speakers_of_rank_64_take_tens_of_megabytes(hundred_thousand):
    """12.8 MB of coefficients in float16; ids, their table, losses and checks add 48 bytes a speaker."""
    _, path = hundred_thousand
    assert path.stat().st_size < 20e6
    fewer, more = (write_compact(many(n), path.with_name("float32"), dtype="float32").bytes for n in (1000, 2000))
    assert (more - fewer) / 1000 < 64 * 4 + 64


def test_opening_and_loading_reads_as_little_of_many_as_of_few(hundred_thousand, tmp_path, monkeypatch):
    space, path = hundred_thousand
    write_compact(many(100), tmp_path / "few")
    read = CompactStore._read
    touched: list[int] = []

    def counted(self, name, start=None, end=None):
        array = read(self, name, start, end)
        if start is not None:
            touched.append(array.nbytes)
        return array

    monkeypatch.setattr(CompactStore, "_read", counted)
    costs = []
    for of in (tmp_path / "few", path):
        tracemalloc.start()
        store = CompactStore(of)
        _, opened = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        store.load("speaker-0000042")  # and mean and basis, once
        touched.clear()
        for i in range(50, 100):
            store.load(f"speaker-{i:07d}")
        costs.append((opened, sum(touched) / 50))
    (few_opened, few_touched), (many_opened, many_touched) = costs
    assert many_opened < few_opened + 20_000
    assert many_touched < 1.5 * few_touched < 1000
    random = Random(0)
    for speaker in random.sample(list(space.embeddings), 20):
        loaded = CompactStore(path).load(speaker) if speaker.endswith("7") else store.load(speaker)
        assert_close(loaded.submodel, space.submodel(speaker).submodel, atol=0.05)


def test_another_base_is_refused_naming_both(tmp_path):
    write_compact(many(3), tmp_path / "some")
    with pytest.raises(FingerprintMismatch, match=f"{BASE}.*{'e' * 32}"):
        CompactStore(tmp_path / "some").load("speaker-0000001", base="e" * 32)


@pytest.mark.parametrize("name", ["one-hot", "hypernetwork"])
def test_only_linear_spaces_are_written(name, tmp_path):
    with pytest.raises(StoreError, match="linear"):
        write_compact(small_space(name), tmp_path / "some")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_compact_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="no compact store at"):
        CompactStore(tmp_path / "nothing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(StoreError, match="not a compact store"):
        CompactStore(tmp_path / "text")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other")
    with pytest.raises(StoreError, match="safetensors file, but not"):
        CompactStore(tmp_path / "other")
    with pytest.raises(StoreError, match="could not be written"):
        write_compact(many(3), tmp_path / "text" / "below")


def test_a_later_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "FORMAT", 99)
    write_compact(many(3), tmp_path / "later")
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 99"):
        CompactStore(tmp_path / "later")


def test_whatever_byte_is_damaged_nothing_wrong_is_loaded(tmp_path):
    """A Submodel loads as it was written, or not at all; half of a file does not open."""
    space = many(20)
    write_compact(space, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    expected = {s: CompactStore(tmp_path / "whole").load(s) for s in list(space.embeddings)[:3]}
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"):
        CompactStore(tmp_path / "half")
    random, refused = Random(1), 0
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [random.randrange(header) for _ in range(40)]
    for place in [*places, *(random.randrange(header, len(whole)) for _ in range(80))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << random.randrange(8)
        (tmp_path / "damaged").write_bytes(damaged)
        try:
            store = CompactStore(tmp_path / "damaged")
            for speaker, right in expected.items():
                loaded = store.load(speaker)
                jax.tree.map(np.testing.assert_array_equal, loaded.submodel, right.submodel)
                assert (loaded.speaker, loaded.training) == (right.speaker, right.training)
        except StoreError:
            refused += 1
    assert refused > 40


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    write_compact(many(3), tmp_path / "some")
    before = (tmp_path / "some").read_bytes()

    def fails(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("specialize.submodel.tensors.save_file", fails)
    with pytest.raises(StoreError, match="no space left"):
        write_compact(many(4), tmp_path / "some")
    assert (tmp_path / "some").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["some"]
    monkeypatch.undo()
    opened = CompactStore(tmp_path / "some")
    write_compact(many(4), tmp_path / "some")
    assert len(opened) == 3
    opened.load("speaker-0000002")
    assert len(CompactStore(tmp_path / "some")) == 4


def test_the_header_does_not_grow_with_the_speakers(hundred_thousand):
    _, path = hundred_thousand
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert len(json.dumps(header)) < 3000
