"""One self-contained file an architecture: its config and its network together."""
