"""Recommendation systems with NVIDIA Merlin and Redis."""
