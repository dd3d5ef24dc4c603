"""DLRM on Criteo data, its tables sharded over processes with TorchRec, exported in HugeCTR's formats.

- ``launch``: starts the processes
- ``job``: what they are asked
- ``worker``: what each of them runs
- ``train``: epochs, validation, checkpoints
- ``model``: DLRM
- ``sharding``: tables over processes
- ``checkpoint``: checkpoints for any number of processes
- ``export``: HugeCTR's files
"""
