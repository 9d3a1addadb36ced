"""Small models and images that the tests share."""

import gc
import json
import os
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

from places import ROOT

# One cache of compiled programs for all test sessions and the commands that they start.
CACHE = ROOT / ".cache" / f"xla-{version('jax')}-{version('jaxlib')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tests compile quickly, not well: a tenth of the seconds for programs that run for milliseconds.
# FACT_JAX_TESTS=optimised compiles as a user's process does (`make test-slow`, `make parity`).
if os.environ.get("FACT_JAX_TESTS") != "optimised":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    quick = "--xla_cpu_parallel_codegen_split_count=1"
    if version("jax").startswith("0.10."):  # later ones abort on an unknown flag
        quick = f"--xla_cpu_use_fusion_emitters=false {quick}"
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}".strip()
# Users may have these on. The commands that tests start inherit them.
os.environ.setdefault("JAX_NUMPY_DTYPE_PROMOTION", "strict")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

from fact_jax import VARIANTS, ViT, ViTConfig  # noqa: E402
from fact_jax.backbone.vit import init_base  # noqa: E402
from fact_jax.files.weights import write_npz  # noqa: E402
from fact_jax.sweep.packing import free_programs  # noqa: E402

# Files of minutes, which begin first, so that no process of `make test` is left alone with one.
LONG = (
    "vtab_cli",
    "trials",
    "methods",
    "report_page",
    "annotations",
    "fewshot_cli",
    "library",
    "training",
    "noah_runs",
    "fewshot_data",
    "noah",
    "predict_cli",
    "fused_attention",
    "groups",
    "launchers",
    "notebook",
    "folders",
    "merging",
    "kinds",
    "kinds_served",
)


def pytest_collection_modifyitems(items):
    names = [f"test_{name}" for name in LONG]
    items.sort(key=lambda i: names.index(i.path.stem) if i.path.stem in names else len(names))


def pytest_collection_finish():
    """Spares the garbage collector the objects of the imports, which stay."""
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_addoption(parser):
    parser.addoption("--seconds", metavar="FILE", help="Tests and seconds of each file, as JSON.")


def pytest_configure(config):
    # `make test` draws the same examples each time, `make test-random` others.
    settings.register_profile("same", derandomize=True)
    settings.load_profile("default" if config.pluginmanager.hasplugin("randomly") else "same")
    if config.getoption("--seconds") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Seconds(Path(config.getoption("--seconds"))))


class Seconds:
    """Seconds of each file of tests, fixtures included, summed over the processes of a session."""

    def __init__(self, path: Path):
        self.path, self.files = path, defaultdict(lambda: {"tests": 0, "seconds": 0.0})

    def pytest_runtest_logreport(self, report):
        file = self.files[report.nodeid.partition("::")[0]]
        file["tests"] += report.when == "call"
        file["seconds"] += report.duration

    def pytest_sessionfinish(self):
        slowest = sorted(self.files.items(), key=lambda item: -item[1]["seconds"])
        self.path.write_text(json.dumps(dict(slowest), indent=1))


@pytest.fixture(autouse=True, scope="module")
def no_programs_of_other_files():
    free_programs(most=0.3)


@pytest.fixture
def fresh_traces():
    """Forgets traced programs before and after a test that replaces what is traced."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def small_config() -> ViTConfig:
    return ViTConfig(width=24, depth=3, num_heads=3, mlp_dim=96, patch_size=4, image_size=16)


@pytest.fixture(scope="session")
def small_vit(small_config):
    """A ViT whose biases and gains are random too, so that a swapped one is noticed."""
    base = init_base(small_config, jax.random.key(0))
    rng = np.random.default_rng(0)
    base = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("float32"), base)
    return ViT(small_config), base


@pytest.fixture
def tiny(tmp_path, monkeypatch, small_config):
    """The change of a config to a ViT of 24 by 3 with images of 16 pixels."""
    monkeypatch.setitem(VARIANTS, "vit_tiny", small_config)
    path = tmp_path / "weights" / "tiny.npz"
    path.parent.mkdir()
    write_npz(path, small_config, init_base(small_config, jax.random.key(0)))
    return {"variant": "vit_tiny", "weights": str(path), "image_size": 16}


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(5, 16, 16, 3)).astype("float32")


@pytest.fixture
def compiled():
    """Names of the programs that XLA compiles (or takes from its cache) during a test."""
    names: list[str] = []

    def listen(event: str, seconds: float, **kwargs):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(kwargs.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)
