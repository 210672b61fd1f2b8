"""Formulas on arrays: no input or output, no Qlib."""
