"""DLRM on Criteo data, with tables sharded over processes by TorchRec, exported in HugeCTR's formats.

- ``launch``: start of the processes
- ``job``: description of their work
- ``worker``: entry point of each process
- ``train``: epochs, validation, checkpoints
- ``model``: DLRM
- ``sharding``: placement of the tables on processes
- ``checkpoint``: checkpoints for any number of processes
- ``export``: HugeCTR's files
"""
