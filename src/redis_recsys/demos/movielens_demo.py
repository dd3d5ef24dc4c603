"""Examples 1 and 2 from end to end on MovieLens-100k, as ``make demo`` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..bundle.bundle import Bundle
from ..config import Settings
from ..data.movielens import fetch
from ..dataset.encode import encode
from ..dataset.interactions import Dataset, raw_folder
from ..dataset.split import Split
from ..errors import StoreError
from ..evaluation.evaluate import Report, evaluate
from ..offline.batch import batch
from ..offline.recommender import BundleRecommender
from ..store.connection import connect
from ..store.recommendations import Recommendations, get_many
from ..trainers.presets import movielens_training
from ..utils.progress import console, step

if TYPE_CHECKING:
    from ..online.deploy import DeployReport
    from ..online.recommender_client import Answer

USERS = 3  # users shown
APPLIED_SECONDS = 10.0  # limit for an event on a busy machine


def offline(settings: Settings, users: int = USERS) -> tuple[Report, list[Recommendations]]:
    """Fetch, encode, train, compare with baselines, train on every row, score all users into Redis, read a few back.

    Args:
        settings: data folder, Redis and more; explicit training settings win over the demo's own.
        users: number of users to read.

    Returns:
        The evaluation, and the recommendations in Redis for the first users.
    """
    from ..evaluation.baselines import fit_baselines
    from ..trainers.training import train

    if settings.redis.host is not None:
        with connect(settings.redis):  # so that errors appear before the training
            pass
    folder = settings.data / "demo"
    with step("1/8  MovieLens-100k"):
        raw = raw_folder(folder / "dataset")
        fetch(raw, "100k", cache=settings.data / "downloads")
    with step("2/8  encode and split by time"):
        encode(raw, folder / "dataset", Split())
    dataset = Dataset(folder / "dataset")
    training = settings.model_copy(update={"train": movielens_training(settings)}).changed("train", final=False)
    with step("3/8  train two-tower and DLRM, export to ONNX"):
        trial = train(dataset, training, folder / "trial")
    with step("4/8  evaluate on the newest 10%, over the full catalogue"):
        candidates = settings.batch.candidates
        towers, both = (
            BundleRecommender(trial, dataset, candidates, ranked=False),
            BundleRecommender(trial, dataset, candidates),
        )
        report = evaluate(dataset, [*fit_baselines(dataset), towers, both], predict=both.predict, retrieval=towers)
    with step("5/8  train for production: on every row, for as many epochs as were best"):
        bundle = train(dataset, training.changed("train", final=True), folder / "bundle", chosen=trial)
    with step("6/8  score every user and write to Redis"), connect(settings.redis) as client:
        written = batch(bundle, client, settings)
        console.print(f"{written.users:,} users written at {written.users_per_second:,.0f} users/s", highlight=False)
        first = next(bundle.users(users))[0].raw_ids
        return report, get_many(client, first.tolist())


@dataclass(frozen=True)
class Online:
    """Report of the demo's online half.

    Attributes:
        deployment: report of the deployment.
        before: answers for the first users.
        viewed: the first item shown to the first user, who then viewed it.
        after: the first user's answer after that event was applied.
    """

    deployment: DeployReport
    before: list[Answer]
    viewed: int | str
    after: Answer


def online(settings: Settings, users: int = USERS) -> Online:
    """Deploy the demo's bundle, serve it with Triton, ask for a few users, send an event, and ask again.

    Args:
        settings: all settings; Triton takes free ports, and everything that is started is stopped again.
        users: number of users to ask for.
    """
    from ..embedded.triton_server import own_triton
    from ..online.deploy import deploy
    from ..online.recommender_client import Client
    from ..online.serving import serving
    from ..store.events import publish, settled_within

    folder = settings.data / "demo"
    bundle = Bundle(folder / "bundle")
    settings = own_triton(settings, folder / "triton")
    with connect(settings.redis) as client:
        with step("7/8  deploy: features by Feast, packed features, vector index, history"):
            deployment = deploy(bundle, client, settings)
        with (
            step("8/8  serve with Triton, recommend, an event, recommend again"),
            serving(settings),
            Client(settings.triton) as asking,
        ):
            first = next(bundle.users(users))[0].raw_ids.tolist()
            before = asking.recommend(first)
            viewed = before[0].items[0]
            event = publish(client, first[0], viewed, "view")
            if not settled_within(client, event, APPLIED_SECONDS):
                raise StoreError(f"event {event} was not applied within {APPLIED_SECONDS:.0f} s")
            return Online(deployment, before, viewed, asking.recommend(first[:1])[0])
