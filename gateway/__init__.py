"""A node of the gateway: clients in, broadcasts out."""

__version__ = "0.1.0"
