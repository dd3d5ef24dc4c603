"""Benchmarks of DLRM: the parameter server tier by tier, Triton over it, training."""
