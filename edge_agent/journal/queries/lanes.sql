-- The lanes: what we send up, and how far we have come in what is sent down.

-- name: number
-- Give numbers to records that join the live generation of a lane.
UPDATE lanes SET numbered = numbered + :records
WHERE lane = (SELECT lane FROM lanes WHERE name = :name ORDER BY generation DESC LIMIT 1)
RETURNING lane, generation, numbered, numbered + shift

-- name: append
INSERT INTO outgoing (lane, first, last, kind, schema_version, body)
VALUES (:lane, :first, :last, :kind, :schema_version, :body)

-- name: append_task
INSERT INTO outgoing (lane, first, last, kind, task_id) VALUES (:lane, :number, :number, 'tasks', :task_id)

-- name: chunks
-- Packed chunks from the one with the record after `after` on; meant to be read no further than needed.
SELECT o.first - l.shift, o.last - l.shift, o.kind, o.schema_version, o.body
FROM lanes AS l JOIN outgoing AS o ON o.lane = l.lane
WHERE l.name = :name AND l.generation = :generation
    AND o.first >= coalesce(
        (SELECT max(i.first) FROM outgoing AS i WHERE i.lane = l.lane AND i.first <= :after + 1 + l.shift), 1
    )
    AND o.last > :after + l.shift
ORDER BY o.first

-- name: handed_over
-- Handed-over tasks from the one after `after` on. A task that was taken back since, or has ended, has
-- nothing left but its number: its payload stays here.
SELECT
    o.first - l.shift, o.task_id, t.model, t.version, -t.rank, t.queue, t.device, t.content_type,
    CASE WHEN t.holder = 'hub' THEN t.payload END, t.items, t.timeout_ms, t.deadline_ms, t.traceparent,
    t.max_attempts, t.idempotency_key, t.response_topic, t.correlation, t.accepted_us
FROM lanes AS l JOIN outgoing AS o ON o.lane = l.lane LEFT JOIN tasks AS t ON t.task_id = o.task_id
WHERE l.name = :name AND l.generation = :generation AND o.first > :after + l.shift
ORDER BY o.first

-- name: acknowledge
UPDATE lanes SET acked = :cursor
WHERE name = :name AND generation = :generation AND acked < :cursor
RETURNING lane, shift

-- name: delete_acknowledged
DELETE FROM outgoing WHERE lane = :lane AND first <= :place AND last <= :place

-- name: drop_drained
-- A lane whose records are all acknowledged, if a younger generation of it is the live one.
DELETE FROM lanes
WHERE lane = :lane AND acked = numbered
    AND EXISTS (SELECT 1 FROM lanes AS y WHERE y.name = lanes.name AND y.generation > lanes.generation)

-- name: newest_chunks
-- The newest first; the body is read of small ones only.
SELECT
    first, last, kind, schema_version,
    CASE WHEN last - first + 1 < :rows AND length(body) < :bytes THEN body END
FROM outgoing
WHERE lane = :lane
ORDER BY first DESC
LIMIT :limit

-- name: delete_chunks
DELETE FROM outgoing WHERE lane = :lane AND first BETWEEN :first AND :last

-- name: live
SELECT generation, numbered - acked FROM lanes WHERE name = :name ORDER BY generation DESC LIMIT 1

-- name: open
INSERT INTO lanes (name, generation) VALUES (:name, :generation)

-- name: all
SELECT name, generation, numbered, acked FROM lanes ORDER BY name, generation

-- name: to_sync
SELECT coalesce(sum(numbered - acked), 0) FROM lanes

-- name: move_cursor
-- Nothing happens if the cursor is there already.
INSERT INTO cursors (lane, cursor, committed) VALUES (:lane, :cursor, :records)
ON CONFLICT (lane) DO UPDATE SET cursor = excluded.cursor, committed = committed + excluded.committed
WHERE excluded.cursor > cursors.cursor

-- name: cursors
SELECT lane, cursor, committed FROM cursors

-- name: identity
SELECT epoch, site, name FROM meta

-- name: identify
INSERT INTO meta (one, epoch, site, name) VALUES (1, :epoch, :site, :name)
ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch, site = excluded.site, name = excluded.name

-- name: renumber
-- All that is left begins at 1 again. No chunk is touched: a record's place is its number plus `shift`.
UPDATE lanes SET shift = shift + acked, numbered = numbered - acked, acked = 0

-- name: reset_cursors
DELETE FROM cursors
