"""NVIDIA Merlin as a trainer: NVTabular, Merlin Models and Merlin Systems, with the same bundle as their result.

Merlin's last releases need Python 3.10 or 3.11, TensorFlow 2.12 and packages of 2023, so they live in an environment of
their own (``recsys setup merlin``). ``worker`` is the code that runs there and imports nothing of ours but ``job``;
everything else here runs in the main environment and never imports Merlin.
"""
