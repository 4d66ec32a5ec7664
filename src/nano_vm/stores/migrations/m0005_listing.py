"""Migration 5: indexes without which opening a file, looking for work and listing a program's runs take the longer the
more runs are stored (`benchmarks/growth.py`)."""

from __future__ import annotations

STATEMENTS = (
    # Almost always empty: a run is given up in the commit that suspends it.
    "CREATE INDEX nvm_runs_held ON nvm_runs (owner) WHERE status = 'SUSPENDED' AND owner IS NOT NULL",
    "CREATE INDEX nvm_runs_program ON nvm_runs (program_name, no)",
)
