"""Where things are kept that can be made again: decoded corpora and compiled programs."""

import os
import sys
from pathlib import Path


def cache_root() -> Path:
    """$SPECIALIZE_CACHE, or ~/.cache/specialize."""
    root = os.environ.get("SPECIALIZE_CACHE")
    return Path(root) if root else Path.home() / ".cache" / "specialize"


def keep_compiled_programs() -> None:
    """Keeps what JAX compiles from one process to the next, unless $JAX_COMPILATION_CACHE_DIR already says where."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache_root() / "compiled")
    if "jax" in sys.modules:  # it reads the environment when it is imported
        sys.modules["jax"].config.update("jax_compilation_cache_dir", folder)
