"""Pipelines of diffusers around hfgen's models, as files that travel. They need `pip install hfgen[diffusers]`."""
