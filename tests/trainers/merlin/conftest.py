"""The real Merlin environment, for tests and for the commands that they run."""

from __future__ import annotations

from pathlib import Path

import pytest

from redis_recsys.config import MerlinSettings
from tests.support.planted import MERLIN_ENVIRONMENT


@pytest.fixture
def merlin(tmp_path: Path) -> MerlinSettings:
    """Settings with a separate log."""
    return MerlinSettings(environment=MERLIN_ENVIRONMENT, log=tmp_path / "merlin.log")


@pytest.fixture
def use_merlin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment for commands that run in a separate folder."""
    monkeypatch.setenv("RECSYS_MERLIN_ENVIRONMENT", str(MERLIN_ENVIRONMENT))
