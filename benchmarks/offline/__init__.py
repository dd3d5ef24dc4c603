"""Offline benchmarks: encoding, training, quality at several moments, and scoring ahead of time."""
