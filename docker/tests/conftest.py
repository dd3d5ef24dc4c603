"""One engine for all tests, and its images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine import Engine
from engine import engine as started
from stack import Stack

STATED = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Engine]:
    with started(tmp_path_factory.mktemp("engine")) as engine:
        pytestconfig.stash[STATED] = engine.images
        # One definition names both images that every example uses.
        with Stack(engine, "multi-stage") as stack:
            stack.compose("build --quiet")
        yield engine


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"base images: {config.stash.get(STATED, 'none were needed')}")
