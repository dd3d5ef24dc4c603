"""Repeatable measurements: ``make bench`` and the like write the tables and plots of docs/benchmarks.md."""
