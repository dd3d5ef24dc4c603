"""A DLRM whose tables are larger than one device, put to work: configured, served, asked.

``configure`` writes ``ps.json`` beside a trained model; ``model`` joins the parameter server with the dense part;
``serving`` puts that into Triton; ``triton/dlrm`` is the Triton side.
"""
