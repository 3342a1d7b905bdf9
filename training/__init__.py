"""Trains the models of hfgen: an entry point for each, one loop."""
