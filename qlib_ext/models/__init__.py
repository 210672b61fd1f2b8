"""Networks and their Qlib classes: one file, one model."""
