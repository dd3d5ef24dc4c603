"""DLRM on Criteo data, its embedding tables sharded over processes with TorchRec, exported in HugeCTR's formats.

``launch`` starts the processes, each of which runs ``worker``; ``train`` is what they do together, on the ``model``
that ``sharding`` has distributed, with ``checkpoint`` and ``export`` at the end. Only ``launch`` and ``job`` are
imported by others: they need neither torch nor TorchRec.
"""
