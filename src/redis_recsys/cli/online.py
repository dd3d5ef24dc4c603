"""Verbs of the online way: deploy a bundle, serve it, ask for recommendations, send events."""

from __future__ import annotations
