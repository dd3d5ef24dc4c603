"""Offline benchmarks: encoding, training, quality, and scoring ahead of time."""
