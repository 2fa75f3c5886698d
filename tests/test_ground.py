"""What the other tests stand on, and what importing the package costs."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import jax.numpy as jnp
import pytest

from specialize.base.spec_augment import spec_augment

ROOT = Path(__file__).resolve().parents[1]


def test_shapes_are_checked_at_run_time():
    with pytest.raises((jaxtyping.TypeCheckError, TypeError)):
        spec_augment(jax.random.key(0), jnp.zeros((3,)), jnp.int32(2), jnp.float32(0.0))


def test_ranks_do_not_promote():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros((2, 3)) + jnp.zeros((3,))


def test_there_are_eight_devices():
    assert jax.device_count() == 8


@pytest.mark.parametrize("module", ["specialize", "specialize.cli"])
def test_light_imports(module):
    script = f"import sys, {module}; assert not {{'jax', 'tensorflow', 'torch'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_everything_without_tensorflow_and_torch():
    script = (
        "import sys, specialize, specialize.train, specialize.score.evaluate\n"
        "for name in specialize.__all__: getattr(specialize, name)\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_public_names_are_what_they_say():
    import specialize

    for name in specialize.__all__:
        assert getattr(specialize, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        specialize.nothing  # noqa: B018


def test_ci_runs_the_test_command_of_the_readme():
    command = re.search(r"<!-- test command -->\n```sh\n(.+)\n```", (ROOT / "README.md").read_text())
    assert command is not None
    assert "<!-- test command -->" in (ROOT / ".ci/run").read_text()
    assert command[1].startswith("python -m pytest")
