"""Broker deep-learning factor systems for A-shares, as a plugin for Qlib."""

__version__ = "0.1.0"
