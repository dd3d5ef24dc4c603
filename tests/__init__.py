"""Tests of the library, a folder for each of its folders; what they share lies in ``support``."""

import os

# Before anything loads OpenMP, and for every process that a test starts. Processes of tests share the cores: threads of
# one that wait for each other spin meanwhile: beside others, a training on MovieLens-100k took four times the CPU.
os.environ.setdefault("OMP_NUM_THREADS", "1")
