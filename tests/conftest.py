"""Shape checks on every annotated function of the package, one thread a process, seeds, markers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_pages import Watched, chromium, document, opened

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-shape-checks",
        action="store_true",
        help="do not check shape annotations (torch.compile cannot trace the checks)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--no-shape-checks"):
        from jaxtyping import install_import_hook

        install_import_hook(["llm_course", "llm_lab"], "shape_checks.check")
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real data sets, which the project does not carry."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are absent: ../shared/data is not a folder")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium for the tests marked `browser`."""
    with chromium() as started:
        yield started


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Watched]]:
    """Opens a page with views; at the end of the test no page may have logged or asked anything."""
    managers = []

    def start(*views: Any, attributes: str = "", body: str = "", **options: Any) -> Watched:
        manager = opened(browser, **options)
        watched = manager.__enter__()
        managers.append((manager, watched))
        watched.page.set_content(document(*views, attributes=attributes, body=body))
        return watched

    yield start
    for manager, watched in managers:
        faults = list(watched.faults)
        manager.__exit__(None, None, None)
        assert faults == []
