"""What every generator must do, over every kind of Submodel and every base; and principal components."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from specialize.errors import SpecError
from specialize.space import GENERATORS, Generator, Hypernetwork, Linear, OneHot, fit_linear
from specialize.space.generators import generator_from_json, generator_to_json
from specialize.submodel import size, stack
from tests.bases import BASES
from tests.space.spaces import GENERATED, points, shared_of
from tests.submodel.programs import SPECS, fresh, shaken


@pytest.fixture(params=GENERATED)
def generator(request) -> Generator:
    return GENERATED[request.param]


def assert_equal(left, right) -> None:
    jax.tree.map(np.testing.assert_array_equal, left, right)


def assert_close(left, right, rtol=1e-5, atol=1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), left, right)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", SPECS)
def test_everything_starts_exactly_at_the_template(generator, base, kind):
    template = shaken(fresh(base, kind))
    shared = shared_of(generator, template)
    for seed in range(2):
        e = generator.init_embedding(jax.random.key(seed), shared)
        assert e.shape == (generator.embedding_size(template),)
        assert_equal(generator.generate(shared, e), template)


@pytest.mark.parametrize("kind", SPECS)
def test_slots_together_equal_one_at_a_time(generator, kind):
    template = fresh("whisper", kind)
    shared, e = shared_of(generator, template, noise=0.1), points(generator, template)
    together = jax.jit(jax.vmap(generator.generate, in_axes=(None, 0)))(shared, e)
    assert_close(together, stack([jax.device_get(generator.generate(shared, row)) for row in e]))


def test_embeddings_differ_and_so_do_their_submodels(generator):
    template = fresh("whisper", "lora")
    shared, e = shared_of(generator, template, noise=0.1), points(generator, template, 2)
    one, two = (generator.generate(shared, row) for row in e)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))
    assert jax.tree.structure(one) == jax.tree.structure(template)


def test_gradients_are_finite_and_reach_every_shared_leaf_and_the_embedding(generator):
    """Away from the start, where what is zero lets no gradient through to what comes before it."""
    template = fresh("whisper", "residual-adapter")
    shared, (e,) = shared_of(generator, template, noise=0.1), points(generator, template, 1)

    def loss(shared, e):
        return sum(jnp.sin(3.0 * leaf).sum() for leaf in jax.tree.leaves(generator.generate(shared, e)))

    gradients = jax.grad(loss, argnums=(0, 1))(shared, e)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


@pytest.mark.parametrize("name", ["linear", "hypernetwork"])
def test_at_the_start_what_is_zero_has_a_gradient(name):
    generator, template = GENERATED[name], shaken(fresh("whisper", "lora"))
    shared = shared_of(generator, template)
    e = generator.init_embedding(jax.random.key(3), shared)
    gradient = jax.grad(lambda s: sum(leaf.sum() for leaf in jax.tree.leaves(generator.generate(s, e))))(shared)
    for part in ("mean", "basis" if name == "linear" else "heads"):
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient[part]))


def test_a_linear_space_is_one_matrix_product_a_parameter_for_all_slots():
    generator, template = Linear(dim=5), fresh("whisper", "residual-adapter")
    shared, e = shared_of(generator, template), points(generator, template, 32)
    lowered = jax.jit(jax.vmap(generator.generate, in_axes=(None, 0))).lower(shared, e).as_text()
    products = re.findall(r"stablehlo\.dot_general.*-> tensor<(\S+)>", lowered)
    assert len(products) == len(jax.tree.leaves(template))
    assert all(shape.startswith("32x") for shape in products)
    # No basis is copied for each slot.
    assert not re.search(r"tensor<32x5x\d", lowered)


def test_a_mean_and_what_is_added_are_linear():
    generator, template = Linear(dim=5), fresh("whisper", "lora")
    shared, e = shared_of(generator, template, noise=0.1), points(generator, template, 2)
    one, two, between = (generator.generate(shared, row) for row in (e[0], e[1], 0.25 * e[0] + 0.75 * e[1]))
    assert_close(jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, one, two), between)
    assert_equal(generator.generate(shared, np.zeros(5, np.float32)), shared["mean"])


def test_the_metric_of_a_linear_space_is_that_of_its_submodels():
    generator, template = Linear(dim=5), fresh("whisper", "lora")
    shared, (one, two) = shared_of(generator, template, noise=0.1), points(generator, template, 2)
    metric = generator.metric(shared)
    assert metric is not None
    made = (generator.generate(shared, row) for row in (one, two))
    square = sum(np.square(a - b).sum() for a, b in zip(*map(jax.tree.leaves, made), strict=True))
    np.testing.assert_allclose((one - two) @ metric @ (one - two), square, rtol=1e-4)


def test_heads_are_shared_by_sites_of_the_same_shape():
    template = fresh("whisper", "lora")
    shared = shared_of(Hypernetwork(dim=4, code=3, hidden=8), template)
    shapes = {(name, leaf.shape) for weights in template.values() for name, leaf in weights.items()}
    assert len(shared["heads"]) == len(shapes) < len(jax.tree.leaves(template))
    assert set(shared["codes"]) == set(template)


def test_of_one_hot_nothing_is_trained_but_embeddings():
    generator, template = OneHot(), fresh("whisper", "lora")
    shared = shared_of(generator, template)
    assert set(shared) == generator.untrained
    assert generator.embedding_size(template) == size(template)


def test_generators_survive_json(generator):
    assert generator_from_json(generator_to_json(generator)) == generator
    assert {type(g) for g in GENERATED.values()} == set(GENERATORS.values())
    with pytest.raises(SpecError, match="colour"):
        generator_from_json(generator_to_json(generator) | {"colour": 1})


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(SpecError, match=r"Unknown generator 'sphere'.*linear"):
        generator_from_json({"kind": "sphere"})
    with pytest.raises(SpecError, match="dim=0"):
        Linear(dim=0)
    with pytest.raises(SpecError, match="hidden=-1"):
        Hypernetwork(hidden=-1)


@pytest.mark.parametrize("dim", [3, 4, 7])
@pytest.mark.parametrize("kind", SPECS)
def test_principal_components_are_exact_where_there_are_enough(kind, dim):
    submodels = [shaken(fresh("whisper", kind), seed=seed) for seed in range(4)]
    shared, embeddings, share = fit_linear(submodels, dim)
    assert share == pytest.approx(1.0)
    for submodel, e in zip(submodels, embeddings, strict=True):
        assert_close(Linear(dim).generate(shared, e), submodel, atol=2e-6)
    np.testing.assert_allclose(embeddings.mean(0), 0.0, atol=1e-6)
    np.testing.assert_allclose(np.square(embeddings[:, :3]).mean(0), 1.0, rtol=1e-5)
    assert not embeddings[:, 3:].any()


def squares(one, other) -> float:
    """Sum of the squares of how two Submodels differ."""
    of = jax.tree.map(lambda a, b: np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)).sum(), one, other)
    return float(sum(jax.tree.leaves(of)))


def test_fewer_components_lose_what_varies_least():
    template = fresh("whisper", "lora")
    direction, noise = shaken(template, seed=1, scale=1.0), [shaken(template, seed=s, scale=0.01) for s in range(6)]
    submodels = [
        jax.tree.map(lambda d, n, t, a=a: (n + a * (d - t)).astype(np.float32), direction, of, template)
        for a, of in zip((-2.0, -1.0, 0.0, 0.5, 1.0, 3.0), noise, strict=True)
    ]
    shared, embeddings, share = fit_linear(submodels, 1)
    middle = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), 0), *submodels)
    lost = [squares(of, Linear(1).generate(shared, e)) for of, e in zip(submodels, embeddings, strict=True)]
    assert 0.5 < share < 1
    assert 1 - share == pytest.approx(sum(lost) / sum(squares(of, middle) for of in submodels), rel=1e-3)
    for submodel, e in zip(submodels, embeddings, strict=True):
        assert_close(Linear(1).generate(shared, e), submodel, atol=0.1)
    ranked = np.argsort(embeddings[:, 0])
    assert ranked.tolist() in ([*range(6)], [*range(6)][::-1])


def test_one_submodel_or_equal_ones_are_the_mean():
    template = fresh("whisper", "lora")
    for n in (1, 3):
        shared, embeddings, share = fit_linear([template] * n, 2)
        assert share == 1
        assert_close(Linear(2).generate(shared, embeddings[0]), template)


def test_submodels_of_different_specs_are_refused():
    with pytest.raises(SpecError, match="no Submodel"):
        fit_linear([], 2)
    with pytest.raises(SpecError, match="different places"):
        fit_linear([fresh("whisper", "lora"), fresh("whisper", "bias-only")], 2)
    other = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), fresh("whisper", "lora"))
    with pytest.raises(SpecError, match="different sizes"):
        fit_linear([fresh("whisper", "lora"), other], 2)
