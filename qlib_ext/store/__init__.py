"""The data store: what a Qlib store of ours holds, and how tables become one."""

from qlib_ext.store.kept import read_table
from qlib_ext.store.metadata import check_files, check_store, fingerprint, read_metadata

__all__ = ["check_files", "check_store", "fingerprint", "read_metadata", "read_table"]
