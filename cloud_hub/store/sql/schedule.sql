-- name: ripen
-- Failed tasks that have waited long enough; one that somebody holds will be seen the next time.
WITH ripe AS (
    SELECT task_id FROM tasks
    WHERE state = 'QUEUED' AND not_before IS NOT NULL AND not_before <= now()
    FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET not_before = NULL FROM ripe WHERE t.task_id = ripe.task_id;

-- name: heads
-- The first tasks of each class and priority: so many entries of the index, whatever lies behind them. How
-- many of each: the wanted number divided among them.
WITH waiting AS MATERIALIZED (
    SELECT class_id, priority, sum(queued)::bigint AS queued
    FROM depths
    GROUP BY class_id, priority
    HAVING sum(queued) > 0
),
heads AS MATERIALIZED (
    SELECT w.class_id, w.priority, w.queued, greatest(%(least)s, %(rows)s / count(*) OVER ()) AS size
    FROM waiting w JOIN classes c USING (class_id)
    WHERE c.model = ANY (%(models)s::text[]) AND NOT c.queue = ANY (%(closed_queues)s::text[])
)
SELECT
    h.class_id, h.priority, h.queued, t.task_id, t.items - t.items_done, t.payload_bytes,
    extract(epoch FROM now() - t.submitted_at)::float8
FROM heads h
CROSS JOIN LATERAL (
    SELECT t.task_id, t.items, t.items_done, t.payload_bytes, t.submitted_at FROM tasks t
    WHERE t.state = 'QUEUED' AND t.not_before IS NULL AND t.class_id = h.class_id AND t.priority = h.priority
    ORDER BY t.class_id, t.priority DESC, t.task_id
    LIMIT h.size
) AS t
ORDER BY h.class_id, h.priority, t.task_id;

-- name: grant
-- SKIP LOCKED: a task that somebody is just granting, cancelling or ending is no business of ours.
-- Tasks are found by id and judged afterwards: with their state among the conditions, the planner of a
-- database without statistics would look through the whole queue for them.
WITH wanted AS (
    SELECT * FROM unnest(
        %(task_ids)b::uuid[], %(agent_ids)s::int[], %(ttls)s::float8[], %(priorities)s::smallint[],
        %(whys)s::text[]
    ) AS w (task_id, agent_id, ttl_s, priority, why)
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
    INSERT INTO leases (task_id, attempt, agent_id, priority, why, expires_at)
    SELECT DISTINCT ON (g.task_id)
        g.task_id, g.attempt, w.agent_id, w.priority, w.why, now() + make_interval(secs => w.ttl_s)
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

-- name: running
-- How many tasks of each queue run.
SELECT t.queue, count(*) FROM leases l JOIN tasks t USING (task_id) GROUP BY t.queue;

-- name: held
-- Leases of less than some priority, the lowest and youngest first: who might make room.
SELECT
    l.task_id, l.agent_id, l.attempt, t.class_id, l.priority, t.items - t.items_done,
    extract(epoch FROM now() - l.granted_at)::float8,
    extract(epoch FROM now() - t.preempted_at)::float8,
    coalesce(t.preempted_at >= l.granted_at, false)
FROM leases l JOIN tasks t USING (task_id)
WHERE l.priority < %(below)s AND l.agent_id = ANY (%(agent_ids)s::int[])
ORDER BY l.priority, l.granted_at DESC
LIMIT %(limit)s;

-- name: stop
-- Those that still run as they were seen to are asked to make room; for whom is noted beside why they ran.
WITH victims AS (
    SELECT * FROM unnest(%(task_ids)b::uuid[], %(attempts)s::smallint[], %(urgent)s::text[])
        AS v (task_id, attempt, urgent)
),
noted AS (
    UPDATE leases l
    SET why = (coalesce(l.why, '{}')::jsonb || jsonb_build_object('preempted_for', v.urgent))::text
    FROM victims v
    WHERE l.task_id = v.task_id AND l.attempt = v.attempt AND v.urgent IS NOT NULL
)
UPDATE tasks t SET preempted_at = now()
FROM victims v, leases l
WHERE t.task_id = v.task_id AND l.task_id = v.task_id AND l.attempt = v.attempt
RETURNING t.task_id, l.agent_id, l.attempt;
