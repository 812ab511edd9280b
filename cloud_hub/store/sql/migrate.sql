-- name: lock
-- Held by whoever migrates, until the connection is closed; the number is "backhaul" in ASCII.
SELECT pg_advisory_lock(7089056601421739372);

-- name: exists
SELECT to_regclass('schema_versions') IS NOT NULL;

-- name: create
CREATE TABLE IF NOT EXISTS schema_versions (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: version
SELECT coalesce(max(version), 0) FROM schema_versions;

-- name: record
INSERT INTO schema_versions (version, name) VALUES (%(version)s, %(name)s);
