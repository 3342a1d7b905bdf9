"""Pipelines around hfgen's models. Those of diffusers need `pip install hfgen[diffusers]`."""
