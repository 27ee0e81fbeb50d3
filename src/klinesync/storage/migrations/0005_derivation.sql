-- With which base and which timeframes the derived series were computed last: one row, none before the first time.
CREATE TABLE derivation (base TEXT NOT NULL, targets TEXT NOT NULL) STRICT;

-- Of a derived series (series.derived_from), whose candles it holds: 0 only what its base gives, and native ones;
-- 1 others too, which are to be computed from the base; 2 that was done, and others remain where the base gives none.
ALTER TABLE series ADD COLUMN origin INTEGER NOT NULL DEFAULT 0;
