-- name: list
SELECT t.model, t.selector, t.version, t.changed_at, m.sha256, b.size, m.key, m.signature
FROM targets t
JOIN models m ON m.name = t.model AND m.version = t.version
JOIN blobs b USING (sha256)
WHERE %(model)s::text IS NULL OR t.model = %(model)s
ORDER BY t.model, t.selector;

-- name: put
-- One that says what is there already changes nothing, not even the instant.
INSERT INTO targets AS t (model, selector, version) VALUES (%(model)s, %(selector)s, %(version)s)
ON CONFLICT (model, selector) DO UPDATE SET version = excluded.version, changed_at = now()
WHERE t.version <> excluded.version;

-- name: remove
DELETE FROM targets WHERE model = %(model)s AND selector = %(selector)s;
