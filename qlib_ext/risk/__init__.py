"""Risk: style exposures, factor returns, covariance, one snapshot a day."""
