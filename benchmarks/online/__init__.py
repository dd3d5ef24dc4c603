"""Benchmarks of answers on demand, and the load that asks for them."""
