"""Candidate sources, one per file, and the merging of what they found."""
