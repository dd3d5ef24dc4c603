"""The follower of deployments: the number of them that it keeps, when it tries again, and what serves meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import redis

from redis_recsys.online import follower as following
from redis_recsys.store import deployments
from tests.support.pipelines import Deployed, ids, running
from tests.support.planted import Trained


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The follower looks when a test calls ``look``, and not by itself."""
    monkeypatch.setattr(following, "TICK", 3600.0)
    monkeypatch.setattr(following, "RETRY", 3600.0)


def test_the_live_deployment_and_the_two_before_it_are_kept_in_memory(trained: Trained, deployed: Deployed) -> None:
    settings = deployed(trained.bundle)
    with running(settings) as runner:
        follower = runner.follower
        kept = [follower.live]
        for _ in range(2):
            deployed(trained.bundle)
            follower.look()
            kept.append(follower.live)
            assert [follower.loaded(each.generation) is each for each in kept] == [True] * len(kept)
        deployed(trained.bundle)
        follower.look()
        assert follower.loaded("4") is follower.live
        assert follower.loaded("3") is kept[2]
        assert follower.loaded("2") is kept[1]
        assert follower.loaded("1") is not kept[0]


def test_a_deployment_that_cannot_be_loaded_is_not_tried_at_every_look(
    trained: Trained, deployed: Deployed, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = deployed(trained.bundle)
    model = settings.deploy.models / deployments.read(client, "1").folder / "ranker.onnx"
    content = model.read_bytes()
    model.unlink()
    with running(settings) as runner:
        follower = runner.follower
        broken = follower.live
        assert broken.stages is None
        model.write_bytes(content)
        follower.look()
        assert follower.live is broken
        monkeypatch.setattr(following, "RETRY", 0.0)
        follower.look()
        assert follower.live.stages is not None


def test_the_previous_deployment_serves_in_place_of_a_bad_one_until_it_expires(
    trained: Trained, bundle_of: Callable[[str], Trained], deployed: Deployed, client: redis.Redis
) -> None:
    settings = deployed(trained.bundle)
    users = ids(np.array([1]))
    with running(settings) as runner:
        deployed(bundle_of("text-ids-history-implicit").bundle)  # its ids are not those of this server
        runner.follower.look()
        found = runner(users)
        assert (found["generation"].tolist(), found["degraded"].tolist()) == ([[1]], [[False]])
        client.delete("deploy:1")
        runner.follower.look()
        found = runner(users)
        assert (found["generation"].tolist(), found["degraded"].tolist()) == ([[2]], [[True]])
