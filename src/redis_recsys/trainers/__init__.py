"""Trainers: each turns a dataset into a bundle. Nothing else knows which one made a bundle."""
