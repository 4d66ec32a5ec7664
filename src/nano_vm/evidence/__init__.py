"""What a run leaves for those who do not trust whoever ran it: receipts, bundles, signatures, the store's log.

Nothing here opens a database, calls a tool or speaks to a network: a bundle is verified with this room, the kernel and
the compiler alone.
"""
