"""One real Triton for all tests that do not harm it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from doubles import GATE
from tritons import WHOLE, settings_in, triton_of

from redis_recsys.config import TritonSettings
from redis_recsys.embedded.triton_server import EmbeddedTriton


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedTriton, TritonSettings]]:
    """One model with two instances; and the settings with which a client finds it. The gate is beside its folder."""
    folder = tmp_path_factory.mktemp("triton")
    (folder / "gate").mkdir()
    settings = settings_in(folder / "server", instances=2)
    with triton_of(settings, WHOLE, **{GATE: str(folder / "gate")}) as server:
        yield server, settings
