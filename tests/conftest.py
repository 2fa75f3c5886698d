"""What all tests share: eight CPU devices, strict ranks, and the real data where it is."""

import gc
import importlib.metadata
import os
import tempfile
from pathlib import Path

# Tests compile thousands of small programs and run each a few times. Without the compiler's optimisations that takes a
# third of the processor time, and a fifth less again where none is cut into pieces for several threads. XLA_FLAGS that
# say otherwise come later, and win.
# The last flag is of jaxlib 0.10 alone, and a later one ends at a flag that it does not know.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false" if importlib.metadata.version("jaxlib").startswith("0.10.") else "",
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("SPECIALIZE_CACHE", str(Path(tempfile.gettempdir()) / f"specialize-tests-{os.getuid()}"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(os.environ["SPECIALIZE_CACHE"]) / "compiled"))
# Each run of a test makes its programs anew, and most of them compile in less than the second that JAX would keep.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest

from specialize.base import Base, import_base, load_base

jax.config.update("jax_numpy_rank_promotion", "raise")

OLD_COMPILER = "fusion_emitters" in os.environ["XLA_FLAGS"]
"""Whether it knows the flag above."""
MAPPINGS = 20_000
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_finish() -> None:
    """Spares the modules and tests that are there by now from being looked through for garbage, and looks rarely.

    What is traced and lowered is many small objects, and looking through them took a tenth of the processor time.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def pytest_sessionfinish() -> None:
    """Spares what is left from being looked through five times more: once is enough to find what was not closed."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Drops compiled programs before a process has so many that it crashes.

    Each has mappings of its own, and Linux lets a process have 65,530 (`vm.max_map_count`); LLVM does not survive the
    next.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.is_file() and maps.read_bytes().count(b"\n") > MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and recordings beside the repository; its tests skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in '{SHARED}', which is not there")
    return SHARED


@pytest.fixture(scope="session")
def whisper_folder(shared, tmp_path_factory) -> Path:
    """A base folder of the real Whisper tiny.en."""
    folder = tmp_path_factory.mktemp("bases") / "whisper-tiny.en"
    import_base(str(shared / "models/whisper-tiny.en"), folder)
    return folder


@pytest.fixture(scope="session")
def whisper(whisper_folder) -> Base:
    """The real Whisper tiny.en."""
    return load_base(whisper_folder)
