"""Tests of the library, a folder for each of its folders; what they share lies in ``support``."""
