"""Every parameter of every kind is trained: it gets a finite gradient and, once moved, has an effect; and a bank of
Submodels under `vmap` is its Submodels one at a time."""

import functools
import itertools

import jax
import numpy as np
import pytest

from specialize.submodel import stack, take
from tests.bases import BASES
from tests.submodel.programs import SPECS, base_of, batch_of, fresh, losses_of, shaken

# What the form of imported Conformers has besides, batch norms and durations, is in the weights.
pytestmark = pytest.mark.parametrize(
    ("name", "kind"), [*itertools.product(BASES, SPECS), ("parakeet-tdt", "full-weights")]
)


@functools.cache
def bank_results(name, kind):
    """Two different Submodels in a bank, on two different orders of the rows: their losses [S, B] and gradients."""
    batch = batch_of(name)
    bank = stack([shaken(fresh(name, kind), seed) for seed in (1, 2)])
    batches = jax.tree.map(lambda x: np.stack([x, x[::-1]]), batch)

    def objective(submodel, params, batch):
        losses = losses_of(name, kind).__wrapped__(params, submodel, batch)
        return losses.sum(), losses

    step = jax.jit(jax.vmap(jax.grad(objective, has_aux=True), in_axes=(0, None, 0)))
    gradients, losses = jax.device_get(step(bank, base_of(name).params, batches))
    return bank, batches, losses, gradients


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(name, kind):
    _, _, _, gradients = bank_results(name, kind)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        for slot in range(2):
            assert np.isfinite(leaf[slot]).all(), path
            # The statistics of batch norms stay those of the base.
            assert leaf[slot].any() == (path[-1].key not in ("mean", "var")), path


def test_the_gradient_of_each_parameter_foretells_its_effect(name, kind):
    """One step against the gradient of one site at a time lowers the loss, whatever the site."""
    bank, _, losses, gradients = bank_results(name, kind)
    submodel, gradient = take(bank, 0), take(gradients, 0)
    sites = sorted(submodel)
    for path in (sites[0], sites[len(sites) // 2], sites[-1]):
        norm = np.sqrt(sum(np.square(g).sum() for g in gradient[path].values()))
        moved = {name: value - 0.02 * gradient[path][name] / norm for name, value in submodel[path].items()}
        after = losses_of(name, kind)(base_of(name).params, submodel | {path: moved}, batch_of(name))
        assert after.sum() < losses[0].sum()


def test_a_bank_under_vmap_is_its_submodels_one_at_a_time(name, kind):
    bank, batches, losses, _ = bank_results(name, kind)
    for slot in range(2):
        alone = losses_of(name, kind)(
            base_of(name).params, take(bank, slot), jax.tree.map(lambda x, slot=slot: x[slot], batches)
        )
        np.testing.assert_allclose(losses[slot], alone, rtol=1e-4)
    assert np.all(np.abs(losses[0] - losses[1][::-1]) > 1e-3)
