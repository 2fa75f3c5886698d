"""The ground that the other tests stand on: runtime types, devices, light imports, one test command."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import specialize
from specialize.submodel import LoRA

ROOT = Path(__file__).resolve().parents[1]


def test_shapes_and_dtypes_are_checked_at_run_time():
    spec, weights = LoRA(), {"a": jnp.zeros((3, 2)), "b": jnp.zeros((2, 4))}
    spec.call(weights, jnp.zeros((2, 3)), jnp.zeros((2, 4)), None)
    with pytest.raises(TypeError):
        spec.call(weights, jnp.zeros((5, 3)), jnp.zeros((2, 4)), None)
    with pytest.raises(TypeError):
        spec.call(weights, jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 4)), None)


def test_ranks_are_not_promoted_silently():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.add(jnp.ones((2, 3)), jnp.ones((3,)))


def test_there_are_eight_cpu_devices():
    assert [device.platform for device in jax.devices()] == ["cpu"] * 8


@pytest.mark.parametrize("module", ["specialize", "specialize.train", "specialize.cli"])
def test_importing_needs_neither_tensorflow_nor_torch(module):
    program = f"import sys, {module}; print(sorted({{'tensorflow', 'torch', 'transformers'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ran.stdout.strip() == "[]"


def test_public_names_are_what_they_say():
    for name in specialize.__all__:
        assert getattr(specialize, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        specialize.nothing  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]


def test_the_check_runs_the_command_of_the_readme(tmp_path):
    """Runs `.ci/run` on a copy with every tool replaced by one that notes how it was called."""
    readme = ROOT / "README.md"
    if not readme.is_file():
        pytest.skip("this checkout has no README.md")
    calls = tmp_path / "calls"
    repository, tools = tmp_path / "repository", tmp_path / "tools"
    (repository / ".ci").mkdir(parents=True)
    (repository / "README.md").write_text(readme.read_text())
    script = repository / ".ci/run"
    script.write_text((ROOT / ".ci/run").read_text())
    script.chmod(0o755)
    tools.mkdir()
    for name in ("python", "ruff", "pyright"):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\necho "{name} $*" >> "{calls}"\n')
        tool.chmod(0o755)
    environment = os.environ | {"PYTHON": str(tools / "python"), "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run([script], env=environment, check=True, capture_output=True, cwd=tmp_path)

    called = calls.read_text().splitlines()
    assert called[-1].startswith("python -m pytest")
    assert called[-1] in readme.read_text().splitlines()
    assert called[-4:-1] == ["ruff check .", "ruff format --check .", "pyright "]
    assert "python -m pip check" in called
