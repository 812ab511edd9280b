-- name: ripen
-- Failed tasks that have waited long enough; one that somebody holds will be seen the next time.
WITH ripe AS (
    SELECT task_id FROM tasks
    WHERE state = 'QUEUED' AND not_before IS NOT NULL AND not_before <= now()
    FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET not_before = NULL FROM ripe WHERE t.task_id = ripe.task_id;

-- name: candidates
-- The heads of the queues: every pair of model and queue is found by one probe of the index, its first
-- tasks by a scan of so many entries, whatever lies behind them.
WITH RECURSIVE heads AS (
    (
        SELECT model, queue FROM tasks
        WHERE state = 'QUEUED' AND not_before IS NULL
        ORDER BY model, queue LIMIT 1
    )
    UNION ALL
    SELECT next.model, next.queue
    FROM heads h
    CROSS JOIN LATERAL (
        SELECT t.model, t.queue FROM tasks t
        WHERE t.state = 'QUEUED' AND t.not_before IS NULL AND (t.model, t.queue) > (h.model, h.queue)
        ORDER BY t.model, t.queue LIMIT 1
    ) AS next
),
firsts AS (
    SELECT
        t.*, row_number() OVER (PARTITION BY t.model ORDER BY t.priority DESC, t.tag, t.task_id) AS place
    FROM heads h
    CROSS JOIN LATERAL (
        SELECT * FROM tasks t
        WHERE t.state = 'QUEUED' AND t.not_before IS NULL AND t.model = h.model AND t.queue = h.queue
        ORDER BY t.model, t.queue, t.priority DESC, t.tag, t.task_id
        LIMIT %(limit)s
    ) AS t
    WHERE (%(models)s::text[] IS NULL OR h.model = ANY (%(models)s))
        AND NOT h.queue = ANY (%(closed_queues)s::text[])
)
SELECT
    task_id, model, version, priority, queue, tag, items, items_done, attempt, origin_agent, payload_bytes,
    extract(epoch FROM now() - submitted_at)::float8, extract(epoch FROM deadline_at - now())::float8
FROM firsts
WHERE place <= %(limit)s
ORDER BY priority DESC, tag, task_id;

-- name: grant
-- SKIP LOCKED: a task that somebody is just granting, cancelling or ending is no business of ours.
-- Tasks are found by id and judged afterwards: with their state among the conditions, the planner of a
-- database without statistics would look through the whole queue for them.
WITH wanted AS (
    SELECT * FROM unnest(%(task_ids)b::uuid[], %(agent_ids)s::int[], %(ttls)s::float8[])
        AS w (task_id, agent_id, ttl_s)
),
held AS MATERIALIZED (
    SELECT t.task_id, t.state, t.not_before FROM tasks t
    WHERE t.task_id = ANY (%(task_ids)b::uuid[])
    ORDER BY t.task_id
    FOR UPDATE SKIP LOCKED
),
granted AS (
    UPDATE tasks t SET state = 'PROCESSING', attempt = t.attempt + 1
    FROM held h
    WHERE t.task_id = h.task_id AND h.state = 'QUEUED' AND h.not_before IS NULL
    RETURNING t.task_id, t.attempt
),
leased AS (
    INSERT INTO leases (task_id, attempt, agent_id, expires_at)
    SELECT DISTINCT ON (g.task_id) g.task_id, g.attempt, w.agent_id, now() + make_interval(secs => w.ttl_s)
    FROM granted g JOIN wanted w USING (task_id)
    RETURNING task_id, agent_id, attempt
)
SELECT task_id, agent_id, attempt FROM leased ORDER BY task_id;

-- name: renew
-- SKIP LOCKED: a lease that is just ending needs no renewal.
WITH moved AS (
    SELECT l.task_id, r.progress
    FROM leases l
    JOIN unnest(%(task_ids)b::uuid[], %(attempts)s::smallint[], %(progress)s::bigint[])
        AS r (task_id, attempt, progress) ON l.task_id = r.task_id AND l.attempt = r.attempt
    WHERE l.agent_id = %(agent_id)s AND l.progress IS DISTINCT FROM r.progress
    FOR UPDATE OF l SKIP LOCKED
)
UPDATE leases l SET progress = m.progress, expires_at = now() + make_interval(secs => %(ttl_s)s)
FROM moved m
WHERE l.task_id = m.task_id;

-- name: lost
-- Leases that have run out; one whose task somebody holds will be seen the next time.
SELECT t.task_id
FROM leases l JOIN tasks t USING (task_id)
WHERE l.expires_at <= now()
ORDER BY t.task_id
LIMIT %(limit)s
FOR UPDATE OF t, l SKIP LOCKED;

-- name: overdue
SELECT task_id FROM tasks
WHERE state = 'QUEUED' AND deadline_at <= now()
ORDER BY deadline_at
LIMIT %(limit)s;

-- name: outstanding
SELECT agent_id, count(*) FROM leases GROUP BY agent_id;

-- name: tags
SELECT queue, max(tag) FROM tasks WHERE state IN ('QUEUED', 'PROCESSING') GROUP BY queue;
