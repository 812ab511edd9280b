-- name: lock
-- One at a time makes or drops months; the number is "months" in ASCII.
SELECT pg_advisory_xact_lock(120325361920115);

-- name: months
-- The months that exist, by name.
SELECT c.relname
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'results'::regclass AND c.relname ~ '^results_[0-9]{4}_[0-9]{2}$'
ORDER BY c.relname;

-- name: create
CREATE TABLE {month} (LIKE results INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING INDEXES);

-- name: move
-- Rows from devices whose clock was ahead of ours wait in the default partition for their month.
WITH moved AS (DELETE FROM results_default WHERE task_id >= {begin} AND task_id < {end} RETURNING *)
INSERT INTO {month} SELECT * FROM moved;

-- name: attach
ALTER TABLE results ATTACH PARTITION {month} FOR VALUES FROM ({begin}) TO ({end});

-- name: drop
DROP TABLE {month};
