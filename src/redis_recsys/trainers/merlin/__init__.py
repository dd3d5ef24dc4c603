"""NVIDIA Merlin as a trainer: NVTabular, Merlin Models and Merlin Systems, resulting in the same kind of bundle.

- ``train``: dataset to bundle
- ``flat``: rows as NVTabular reads them
- ``worker_job``: jobs of the worker
- ``worker_process``: the worker's process and its events
- ``worker/``: code that runs in Merlin's environment
- ``importing``: bundles from the public notebooks' exports
- ``exporting``: repositories of Merlin Systems
- ``categories``: NVTabular's vocabularies
- ``conversion``: the bundle's ONNX files from converted models
- ``wiring``: packed inputs for a model with one input per feature

Merlin's last releases need Python 3.10 or 3.11, TensorFlow 2.12 and packages of 2023, so they live in a separate
environment (``recsys setup merlin``). ``worker`` runs there and imports no other module of ours than ``worker_job`` and
``worker_events``; everything else here runs in the main environment and never imports Merlin.
"""
