"""NVIDIA Merlin as a trainer: NVTabular, Merlin Models and Merlin Systems, with the same bundle as their result.

- ``train``: dataset to bundle
- ``flat``: rows as NVTabular reads them
- ``worker_job``: what the worker is asked
- ``worker_process``: the worker started and listened to
- ``worker/``: what runs in Merlin's environment
- ``importing``: bundles of what the public notebooks exported
- ``exporting``: repositories of Merlin Systems
- ``categories``: vocabularies of NVTabular
- ``conversion``: converted models as ONNX files
- ``wiring``: packed inputs for a model with one input per feature

Merlin's last releases need Python 3.10 or 3.11, TensorFlow 2.12 and packages of 2023, so they live in an environment of
their own (``recsys setup merlin``). ``worker`` runs there and imports nothing of ours but ``worker_job`` and
``worker_events``; everything else here runs in the main environment and never imports Merlin.
"""
