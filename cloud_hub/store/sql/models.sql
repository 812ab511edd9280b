-- name: list
SELECT m.name, m.version, m.sha256, b.size, m.key, m.signature, m.pushed_at, NULL
FROM models m JOIN blobs b USING (sha256)
WHERE %(name)s::text IS NULL OR m.name = %(name)s
ORDER BY m.name, m.pushed_at DESC, m.version;

-- name: find
SELECT m.name, m.version, m.sha256, b.size, m.key, m.signature, m.pushed_at, m.manifest
FROM models m JOIN blobs b USING (sha256)
WHERE m.name = %(name)s AND m.version = %(version)s;

-- name: add
INSERT INTO models (name, version, sha256, manifest, key, signature)
VALUES (%(name)s, %(version)s, %(sha256)s, %(manifest)s, %(key)s, %(signature)s)
ON CONFLICT (name, version) DO NOTHING;

-- name: sign
-- Who vouches for it now.
UPDATE models SET key = %(key)s, signature = %(signature)s WHERE name = %(name)s AND version = %(version)s;

-- name: remove
DELETE FROM models WHERE name = %(name)s AND version = %(version)s;
