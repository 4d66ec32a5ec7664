"""Migration 7: the index of segments says where each of them ends.

So the guard that every segment has to pass looks into the index alone. It refuses what it refused before.
"""

from __future__ import annotations

STATEMENTS = (
    "DROP TRIGGER nvm_segments_consecutive",
    "DROP INDEX nvm_segments_at",
    # The guard and `LOAD_RUN` spell the end as it is spelt here; else SQLite would read the row for it. That no two
    # segments begin at the same place is up to the guard, whatever their lengths.
    "CREATE UNIQUE INDEX nvm_segments_at ON nvm_segments (run, seq, seq + length(digests) / 32)",
    # Neither a gap nor an overlap can be written: a segment begins where the one before it ends. The second condition
    # stops REPLACE, which would remove the row of the same `n` without asking the other triggers. A row that SQLite has
    # yet to number has the number -1 here, and there is nothing to look for.
    """CREATE TRIGGER nvm_segments_consecutive BEFORE INSERT ON nvm_segments
        WHEN NEW.seq IS NOT coalesce(
            (SELECT seq + length(digests) / 32 FROM nvm_segments
                WHERE run = NEW.run ORDER BY seq DESC LIMIT 1), 0)
            OR (NEW.n IS NOT -1 AND EXISTS (SELECT 1 FROM nvm_segments WHERE n = NEW.n))
        BEGIN SELECT RAISE(ABORT, 'a segment begins where the one before it ends'); END""",
)
