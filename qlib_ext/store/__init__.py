"""The data store: what a Qlib store of ours holds, and how tables become one."""
