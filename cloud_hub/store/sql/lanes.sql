-- name: lock
SELECT cursor, committed FROM up_lanes WHERE agent_id = %(agent_id)s AND lane = %(lane)s FOR UPDATE;

-- name: open
INSERT INTO up_lanes (agent_id, lane) VALUES (%(agent_id)s, %(lane)s) ON CONFLICT DO NOTHING;

-- name: advance
UPDATE up_lanes SET
    cursor = greatest(cursor, %(last)s),
    committed = committed + %(added)s,
    numbered = greatest(numbered, %(numbered)s, %(last)s)
WHERE agent_id = %(agent_id)s AND lane = %(lane)s;

-- name: quarantine
INSERT INTO quarantine (agent_id, lane, header, payload, error)
VALUES (%(agent_id)s, %(lane)s, %(header)s::jsonb, %(payload)s, %(error)s);

-- name: report
INSERT INTO up_lanes AS u (agent_id, lane, numbered)
SELECT %(agent_id)s, lane, numbered
FROM unnest(%(lanes)s::text[], %(numbered)s::bigint[]) AS r (lane, numbered)
ORDER BY lane
ON CONFLICT (agent_id, lane) DO UPDATE SET numbered = excluded.numbered
WHERE excluded.numbered > u.numbered;

-- name: ledgers
SELECT 'up', agent_id, lane, numbered, cursor, committed FROM up_lanes
WHERE %(agent_ids)s::int[] IS NULL OR agent_id = ANY (%(agent_ids)s)
UNION ALL
SELECT 'down', agent_id, lane, numbered, acked, acked FROM down_lanes
WHERE %(agent_ids)s::int[] IS NULL OR agent_id = ANY (%(agent_ids)s);

-- name: down_lanes
SELECT lane, numbered, acked FROM down_lanes WHERE agent_id = %(agent_id)s;

-- name: acknowledge
-- The lane is locked before its chunks go, as everywhere.
WITH moved AS (
    UPDATE down_lanes SET acked = least(%(cursor)s, numbered)
    WHERE agent_id = %(agent_id)s AND lane = %(lane)s AND acked < %(cursor)s
    RETURNING acked
)
DELETE FROM outgoing o USING moved
WHERE o.agent_id = %(agent_id)s AND o.lane = %(lane)s AND o.first <= moved.acked AND o.last <= moved.acked;

-- name: renumber
-- The cursor is above every number that waits, so no new number meets an old one.
WITH lane AS (
    SELECT acked, numbered FROM down_lanes
    WHERE agent_id = %(agent_id)s AND lane = %(lane)s AND numbered < %(cursor)s
    FOR UPDATE
),
moved AS (
    UPDATE down_lanes d SET numbered = lane.numbered - lane.acked + %(cursor)s, acked = %(cursor)s
    FROM lane
    WHERE d.agent_id = %(agent_id)s AND d.lane = %(lane)s
    RETURNING %(cursor)s - lane.acked AS by
)
UPDATE outgoing o SET first = o.first + moved.by, last = o.last + moved.by
FROM moved
WHERE o.agent_id = %(agent_id)s AND o.lane = %(lane)s;
