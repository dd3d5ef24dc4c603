"""Benchmarks of recommendations on demand, and their load generator."""
