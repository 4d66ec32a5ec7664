"""Migration 4: what the names of programs mean to tenants other than the default one (SPEC §9)."""

from __future__ import annotations

STATEMENTS = (
    """CREATE TABLE nvm_tenant_names (
        tenant TEXT NOT NULL,
        name TEXT NOT NULL,
        hash TEXT NOT NULL REFERENCES nvm_programs (hash),
        PRIMARY KEY (tenant, name)
    ) WITHOUT ROWID""",
    "CREATE INDEX nvm_runs_tenant ON nvm_runs (tenant, no)",
)
