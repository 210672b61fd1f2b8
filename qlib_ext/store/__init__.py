"""The data store: what a Qlib store of ours holds, and how tables become one."""

from qlib_ext.store.metadata import check_store, fingerprint, read_metadata

__all__ = ["check_store", "fingerprint", "read_metadata"]
