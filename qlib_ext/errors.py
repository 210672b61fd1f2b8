"""Errors of qlib_ext: every failure a user can cause has a name, and says what, where and what to do next."""


class ExtError(Exception):
    """Base of all errors raised on purpose by qlib_ext."""


class ConfigError(ExtError, ValueError):
    """A configuration cannot work: unknown keyword, unknown name, overlapping or empty segments, missing embargo."""


class DataError(ExtError, ValueError):
    """Input data are missing, malformed or contradict themselves."""


class ShapeError(ExtError, ValueError):
    """A tensor or table has another shape than the one documented."""


class NotFittedError(ExtError, RuntimeError):
    """Something learned was asked for before `fit` (or before a checkpoint was loaded)."""


class InfeasibleError(ExtError, RuntimeError):
    """An optimisation problem has no solution under the constraints that may not be relaxed."""


class SolverError(ExtError, RuntimeError):
    """A solver ended without an answer that can be verified."""
