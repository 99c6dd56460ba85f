"""What the tests share: tiny pipelines, fresh for each test, and the bundled model.

Tests exchange processors, schedulers and weights, so a pipeline is built anew for each test:
that takes 0.05 seconds. ``tests.tiny`` has the builders behind these fixtures, with options.

What is large is imported inside the fixtures: the process that hands out tests to others (``-n 2``)
needs none of it.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    import torch

gc.disable()  # until all is imported: none of that is garbage

settings.register_profile(
    "xattn",
    deadline=None,  # a shared machine's pauses are no failures
    derandomize=True,  # the same examples everywhere
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("xattn")

UNAVOIDABLE = (
    # diffusers' Euler and KDPM2 schedulers hand numpy an expression of torch tensors.
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:__array_wrap__ must accept context and return_scalar:DeprecationWarning",
)


def pytest_configure(config: pytest.Config) -> None:
    for line in UNAVOIDABLE:
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_finish() -> None:
    """Look for garbage less often, and not among the half million objects of modules."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)  # a tiny pipeline is as many objects


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else min(before, 2))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> Callable[..., torch.Generator]:
    """Return ``generator(seed=0)``, a fresh CPU generator for each call."""
    import torch

    return lambda seed=0: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tiny CLIP tokenizer. Shared: a test that adds tokens takes ``tiny.tokenizer()``."""
    from tests import tiny

    return tiny.tokenizer()


@pytest.fixture
def sd1() -> Any:
    from tests import tiny

    return tiny.sd1()


@pytest.fixture
def sd2() -> Any:
    from tests import tiny

    return tiny.sd2()


@pytest.fixture
def sdxl() -> Any:
    from tests import tiny

    return tiny.sdxl()


@pytest.fixture(scope="session")
def toyland() -> Any:
    """The bundled model, loaded once: a test leaves it as it was."""
    import xattn

    try:
        pipe = xattn.demo()
    except (AttributeError, FileNotFoundError) as missing:
        pytest.skip(f"the bundled model's weights aren't here: {missing}")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium, driven by Selenium; it keeps what the console and the network say."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync",
        "disable-dev-shm-usage", "hide-scrollbars",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    opened = webdriver.Chrome(options=options, service=service)
    opened.set_script_timeout(60)
    yield opened
    opened.quit()
    service.stop()
