-- name: begin
INSERT INTO blobs DEFAULT VALUES RETURNING blob_id;

-- name: append
-- A piece of one that is still coming; nothing, once it was given up.
WITH coming AS (
    UPDATE blobs SET stored_at = now() WHERE blob_id = %(blob_id)s AND state = 'coming' RETURNING blob_id
)
INSERT INTO blob_chunks (blob_id, number, body) SELECT blob_id, %(number)s, %(body)b FROM coming;

-- name: hold
-- Whether a content is there; if so, it stays until the end of the transaction.
SELECT blob_id FROM blobs WHERE sha256 = %(sha256)s FOR KEY SHARE;

-- name: complete
UPDATE blobs SET state = 'complete', sha256 = %(sha256)s, size = %(size)s
WHERE blob_id = %(blob_id)s AND state = 'coming';

-- name: find
SELECT blob_id, size FROM blobs WHERE sha256 = %(sha256)s;

-- name: chunk
SELECT body FROM blob_chunks WHERE blob_id = %(blob_id)s AND number = %(number)s;

-- name: give_up
UPDATE blobs SET state = 'going' WHERE blob_id = %(blob_id)s AND state = 'coming';

-- name: abandoned
-- Those that nobody has sent a piece of for a while.
UPDATE blobs SET state = 'going'
WHERE state = 'coming' AND stored_at < now() - make_interval(secs => %(after_s)s);

-- name: unused
-- Those that no model is made of. Waits for whoever is about to make one of them.
SELECT blob_id FROM blobs b
WHERE state = 'complete' AND NOT EXISTS (SELECT FROM models m WHERE m.sha256 = b.sha256)
ORDER BY blob_id
FOR UPDATE;

-- name: retire
-- Looks again, for they may have come into use while they were waited for.
UPDATE blobs b SET state = 'going', sha256 = NULL, size = NULL
WHERE blob_id = ANY (%(blob_ids)s::bigint[])
    AND NOT EXISTS (SELECT FROM models m WHERE m.sha256 = b.sha256);

-- name: going
SELECT blob_id FROM blobs WHERE state = 'going' ORDER BY blob_id;

-- name: take_away
-- Some of the pieces, so that no statement takes long.
DELETE FROM blob_chunks
WHERE blob_id = %(blob_id)s AND number IN (
    SELECT number FROM blob_chunks WHERE blob_id = %(blob_id)s ORDER BY number LIMIT %(limit)s
);

-- name: forget
DELETE FROM blobs WHERE blob_id = %(blob_id)s AND state = 'going';
