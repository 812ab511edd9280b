-- name: take
UPDATE leadership SET token = token + 1, since = now() RETURNING token;

-- name: check
SELECT token FROM leadership FOR SHARE;
