"""Portfolio: target weights, trades, the exchange, the fast daily back-test."""
