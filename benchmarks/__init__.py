"""Measurements that anyone can repeat: ``make bench`` and ``make bench-online`` write the README's tables and plots."""
