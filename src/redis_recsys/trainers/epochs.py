"""Number of epochs for a second training on other rows: the best epoch of each model's curve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..bundle.bundle import Bundle

MODELS = ("retrieval", "ranking")
Curves = dict[str, list[dict[str, Any]]]


def best_epochs(curves: Curves) -> dict[str, int]:
    """Return the epoch with the highest validation metric, by model."""
    return {name: max(curves[name], key=lambda record: record["metric"])["epoch"] for name in MODELS}


def curves_of(bundle: Bundle, trainer: str) -> Curves:
    """Return the training records of both models of a bundle, used instead of choosing the epochs again.

    Raises:
        ConfigError: the bundle was trained by another trainer, or has no records because it was imported.
    """
    if bundle.manifest.trainer != trainer:
        raise ConfigError(
            f"{bundle.path} was trained by {bundle.manifest.trainer}: its epochs mean nothing to {trainer}"
        )
    curves = bundle.manifest.metrics.get("curves", {})
    if not all(curves.get(name) for name in MODELS):
        raise ConfigError(f"{bundle.path} has no records of its training: choose the epochs anew, without --epochs-of")
    return {name: curves[name] for name in MODELS}
