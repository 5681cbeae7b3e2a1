"""The strict JAX that every test runs under, doctests of the package and the README included.

Importing this file sets it, before anything is traced: no implicit dtype promotion, no implicit rank
promotion, x64 on, and the CPU unless ``JAX_PLATFORMS`` says otherwise. ``PWGF_TEST_X64=0`` turns x64 off, as
users have it by default; run ``pytest -m float32`` then, for x64 hides faults that they would see.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

X64 = os.environ.get("PWGF_TEST_X64", "1") != "0"

if not os.environ.get("JAX_PLATFORMS") and "accelerator" not in sys.argv:  # pytest -m accelerator takes what is there
    os.environ["JAX_PLATFORMS"] = "cpu"  # for the processes that tests start
    jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", X64)
# Compilation dominates the suite; what XLA's expensive passes change is speed. CI's leg without x64 keeps them.
if os.environ.get("PWGF_TEST_OPTIMIZED", "0") == "0":
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for the processes that tests start
    if jax.__version_info__ < (0, 11):  # a quarter of the time to compile; later versions do not know the flag
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes a first example slow, and a test must fail for everyone or for no one.
hypothesis.settings.register_profile("pwgf", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("pwgf")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark ``float32`` every test of that dtype: it holds with x64 off as well as on."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("dtype") is jnp.float32:
            item.add_marker("float32")


@pytest.fixture(scope="session", autouse=True)
def shared_compilations(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The workers of one session share what they compile: most of the suite's time is compilation."""
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")  # the processes that tests start share them too
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True)
def bounded_programs() -> Iterator[None]:
    """XLA ends a process that holds so many compiled programs that there are no memory maps left: they go before."""
    yield
    pages = Path("/proc/self/statm")
    if pages.exists() and int(pages.read_text().split()[1]) * resource.getpagesize() > 2.5e9:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key() -> jax.Array:
    """A typed key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture(params=[jnp.float32, jnp.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> type:
    """Both floating dtypes; float64 is skipped where x64 is off."""
    if request.param is jnp.float64 and not X64:
        pytest.skip("x64 is off")
    return request.param


@pytest.fixture
def tolerance() -> Callable[..., float]:
    """``tolerance(dtype, factor)`` is factor·√eps of the dtype; √eps is 3.5e-4 in float32, 1.5e-8 in float64.

    Half of the digits: what a square root of a singular operator, or a well-made iteration, keeps.
    """
    return lambda dtype, factor=1.0: factor * float(np.sqrt(jnp.finfo(dtype).eps))
