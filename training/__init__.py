"""Trains the models of hfgen: four entry points, one loop."""
