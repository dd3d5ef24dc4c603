"""Benchmarks of this library and NVIDIA Merlin side by side."""
