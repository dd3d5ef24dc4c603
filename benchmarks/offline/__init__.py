"""Benchmarks of the offline way: encoding, training, quality, scoring ahead of time."""
