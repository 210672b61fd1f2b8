"""The generated market: what runs when a user has no data yet."""
