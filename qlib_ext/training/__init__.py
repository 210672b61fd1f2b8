"""The training loop, its losses and rules; needs torch and numpy only."""
