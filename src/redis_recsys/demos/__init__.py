"""Demos: the examples from end to end.

- ``movielens_demo``: ``recsys demo``: examples 1 and 2 on MovieLens-100k
- ``large_scale_demo``: ``recsys dlrm demo``: example 3 on made-up clicks
- ``observer``: sends requests to a served DLRM and reports the tiers that answered them
"""
