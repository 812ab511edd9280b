-- name: hold_places
-- While a word to these agents is written, nobody succeeds them: see agents.sql, succeed.
SELECT pg_advisory_xact_lock_shared(%(class)s, hashtext(place))
FROM (
    SELECT DISTINCT site || '/' || name AS place FROM agents
    WHERE agent_id = ANY (%(agent_ids)s::int[]) ORDER BY place
) AS places;

-- name: append
-- Number records at the end of their lanes and put them there. A word about a task (lane `results`) goes
-- to its agent's current epoch. The upsert locks each lane until the commit, so that numbers are
-- committed in their order; lanes are taken in one order, so that two of these never wait for each other.
WITH fresh AS (
    SELECT
        r.position, r.size, r.lane, r.kind, r.task_id, r.attempt, r.body,
        CASE r.lane WHEN %(results_lane)s THEN (
            SELECT max(heir.agent_id) FROM agents a JOIN agents heir USING (site, name)
            WHERE a.agent_id = r.agent_id
        ) ELSE r.agent_id END AS agent_id
    FROM unnest(
        %(agent_ids)s::int[], %(lanes)s::text[], %(sizes)s::int[], %(kinds)s::text[],
        %(task_ids)s::uuid[], %(attempts)s::smallint[], %(bodies)s::text[]
    ) WITH ORDINALITY AS r (agent_id, lane, size, kind, task_id, attempt, body, position)
),
totals AS (
    SELECT agent_id, lane, sum(size) AS size FROM fresh GROUP BY agent_id, lane
),
numbered AS (
    INSERT INTO down_lanes AS d (agent_id, lane, numbered)
    SELECT agent_id, lane, size FROM totals ORDER BY agent_id, lane
    ON CONFLICT (agent_id, lane) DO UPDATE SET numbered = d.numbered + excluded.numbered
    RETURNING agent_id, lane, numbered
),
placed AS (
    SELECT
        f.*,
        n.numbered - t.size + sum(f.size) OVER (PARTITION BY f.agent_id, f.lane ORDER BY f.position) AS last
    FROM fresh f JOIN totals t USING (agent_id, lane) JOIN numbered n USING (agent_id, lane)
),
written AS (
    INSERT INTO outgoing (agent_id, lane, first, last, kind, task_id, attempt, body)
    SELECT agent_id, lane, last - size + 1, last, kind, task_id, attempt, body::jsonb FROM placed
)
SELECT agent_id FROM numbered;

-- name: chunks
-- The chunks of a lane after a number, with the size of what a lease would carry.
SELECT o.first, o.last, o.kind, CASE o.kind WHEN 'leases' THEN coalesce(t.payload_bytes, 0) ELSE 0 END
FROM outgoing o LEFT JOIN tasks t ON t.task_id = o.task_id AND o.kind = 'leases'
WHERE o.agent_id = %(agent_id)s AND o.lane = %(lane)s AND o.first > %(after)s
ORDER BY o.first
LIMIT %(limit)s;

-- name: leases
-- An attempt that is not the current one any more, or that is about to be lost, goes without payload.
SELECT
    o.task_id,
    coalesce(t.model, '') AS model,
    t.version,
    coalesce(t.priority, 0) AS priority,
    coalesce(t.queue, '') AS queue,
    t.device,
    coalesce(t.content_type, '') AS content_type,
    p.body AS payload,
    coalesce(t.items, 1) AS items,
    t.timeout_ms,
    -- Not greatest() alone, which would make 0 of a task without a deadline.
    CASE WHEN t.deadline_at IS NOT NULL
        THEN greatest(0, extract(epoch FROM t.deadline_at - now()) * 1000)::bigint END AS deadline_ms,
    t.traceparent,
    o.attempt,
    coalesce(extract(epoch FROM l.expires_at - now()) * 1000, 0)::bigint AS ttl_ms,
    coalesce(t.items_done, 0) AS items_done,
    a.site || '/' || a.name AS origin
FROM outgoing o
LEFT JOIN tasks t ON t.task_id = o.task_id
LEFT JOIN leases l ON l.task_id = o.task_id AND l.attempt = o.attempt AND l.agent_id = o.agent_id
    AND l.expires_at > now()
LEFT JOIN payloads p ON p.task_id = l.task_id
LEFT JOIN agents a ON a.agent_id = t.origin_agent
WHERE o.agent_id = %(agent_id)s AND o.lane = %(lane)s AND o.first BETWEEN %(first)s AND %(last)s
ORDER BY o.first;

-- name: results
-- All items of each task, as many as its chunk has numbers: one without a row (dropped with its month)
-- is sent as failed, so that the books of the lane stay right. The LIMIT keeps the planner, which cannot
-- know how few chunks these are, from reading whole months to join them.
SELECT
    o.task_id,
    n.item::int AS item,
    coalesce(r.attempt, o.attempt) AS attempt,
    coalesce(r.device, t.device) AS device,
    coalesce(r.model, t.model, '') AS model,
    coalesce(r.version, t.version, '') AS version,
    coalesce(r.outcome, 'failed') AS outcome,
    r.label,
    r.score,
    r.output,
    CASE WHEN r.task_id IS NULL THEN 'the hub has no row of this item' ELSE r.error END AS error,
    coalesce(r.observed_at, t.observed_at, now()) AS observed_at,
    r.clock_offset_us,
    r.clock_error_us,
    r.wait_us,
    r.run_us
FROM outgoing o
CROSS JOIN LATERAL generate_series(0, o.last - o.first) AS n (item)
LEFT JOIN tasks t ON t.task_id = o.task_id
LEFT JOIN LATERAL (
    SELECT * FROM results r WHERE r.task_id = o.task_id AND r.item = n.item LIMIT 1
) AS r ON true
WHERE o.agent_id = %(agent_id)s AND o.lane = %(lane)s AND o.first BETWEEN %(first)s AND %(last)s
ORDER BY o.first, n.item;

-- name: bodies
SELECT task_id, attempt, body::text
FROM outgoing
WHERE agent_id = %(agent_id)s AND lane = %(lane)s AND first BETWEEN %(first)s AND %(last)s
ORDER BY first;
