"""HugeCTR's artefacts, read and written: network, dense weights, sparse tables, ``ps.json``, Triton configuration.

A trained DLRM is ``dlrm.json`` (the network), a file of dense weights, and one folder per embedding table. They are
what HugeCTR up to 25.03 saved and its inference server loaded; formats from its public sources (v23 and v24).
"""
