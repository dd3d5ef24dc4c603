"""Data sources: each writes a raw folder (``schema.yaml``, ``interactions/``, optional ``users`` and ``items``).

- ``movielens``: MovieLens of any size
- ``movielens_releases``: published layouts of MovieLens
- ``aliccp``: Ali-CCP
- ``synthetic``: made-up clicks with a known click probability
- ``tabular/``: anyone's CSV or parquet, described by a schema
- ``criteo/``: Criteo click logs, which example 3 reads without a raw folder
- ``download``: downloads, whole and verified
"""
