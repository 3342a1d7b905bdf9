"""Pipelines of diffusers around hfgen's models. Importing one needs `pip install hfgen[diffusers]`."""
