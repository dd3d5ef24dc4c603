"""Entities and feature views of a bundle for ``feast apply``: ``redis_recsys.online.feature_store`` derives them."""

import os
from pathlib import Path

from redis_recsys.bundle.bundle import Bundle
from redis_recsys.online.feature_store import definitions, write_sources

ROOT = Path(__file__).parents[2]

bundle = Bundle(Path(os.environ.get("RECSYS_BUNDLE", ROOT / "data" / "demo" / "bundle")))
folder = ROOT / "data" / "feast" / os.environ["FEAST_PROJECT"]
write_sources(bundle, folder)
user, user_features, item, item_features = definitions(bundle.schema, bundle.id_kinds, folder)
