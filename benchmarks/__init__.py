"""Measurements that anyone can repeat: ``make bench`` and its kin write the tables and plots of docs/benchmarks.md."""
