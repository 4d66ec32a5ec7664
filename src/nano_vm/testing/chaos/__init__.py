"""Chaos: real processes on a real database, SQLite or PostgreSQL, killed with SIGKILL, flooded, raced and lied to, with
effects counted outside (SPEC §17). `nano-vm chaos` runs it; `campaign` is the place to begin reading.
"""
