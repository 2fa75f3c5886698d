"""Reading a checkpoint by its bytes gives what Orbax gives, or leaves it to Orbax."""

from typing import Any

import jax
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from specialize.submodel import load_submodel, save_submodel
from specialize.submodel.checkpoint import read_arrays
from specialize.submodel.shards import read_shards
from tests.submodel.submodels import stored


def tree(*shapes: tuple[int, ...], dtype: Any = np.float32):
    rng = np.random.default_rng(0)
    return {"a/b": {f"w{i}": rng.standard_normal(shape).astype(dtype) for i, shape in enumerate(shapes)}}


@pytest.mark.parametrize(
    "arrays",
    [
        tree((3, 4), (5,), (2, 3, 4)),
        {"a": {"zeros": np.zeros((4, 4), np.float32), "ones": np.ones((2,), np.float32)}},
        tree((700, 900)),
        {"deep": {"er": {"still": np.arange(6, dtype=np.float32).reshape(2, 3)}}},
    ],
)
def test_it_is_what_orbax_reads(tmp_path, arrays):
    ocp.save(tmp_path / "one", arrays)
    found = read_shards(epath.Path(tmp_path / "one"))
    assert found is not None
    jax.tree.map(np.testing.assert_array_equal, found, ocp.load(tmp_path / "one"))


@pytest.mark.parametrize(
    "arrays", [tree((3, 4), dtype=np.int32), tree((3, 4), dtype=np.float16), {"a": {"x": np.ones(())}}]
)
def test_what_it_does_not_know_is_left_to_orbax(tmp_path, arrays):
    ocp.save(tmp_path / "one", arrays)
    assert read_shards(epath.Path(tmp_path / "one")) is None
    found = read_arrays(epath.Path(tmp_path / "one"), "Submodel")
    jax.tree.map(np.testing.assert_array_equal, found, arrays)


def test_a_bucket_is_left_to_orbax():
    assert read_shards(epath.Path("gs://bucket/one")) is None


def test_a_submodel_needs_no_orbax_to_be_read(tmp_path, monkeypatch):
    save_submodel(tmp_path / "one", stored())
    monkeypatch.setattr(ocp, "load", None)
    monkeypatch.setattr(ocp, "metadata", None)
    jax.tree.map(np.testing.assert_array_equal, load_submodel(tmp_path / "one").submodel, stored().submodel)


def test_a_replaced_submodel_is_read_anew(tmp_path):
    for value in (1.0, 2.0):
        ocp.save(str(tmp_path / "one"), {"a": {"x": np.full((3,), value, np.float32)}}, overwrite=True)
        found = read_shards(epath.Path(tmp_path / "one"))
        assert found is not None
        np.testing.assert_array_equal(found["a"]["x"], np.full((3,), value))
