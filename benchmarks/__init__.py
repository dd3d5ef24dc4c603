"""Measurements that anyone can repeat: ``make bench`` runs them all and writes the tables and plots of the README."""
