"""Numbers, drawings and pages about factors and portfolios."""
