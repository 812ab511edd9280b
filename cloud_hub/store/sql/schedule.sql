-- name: ripen
-- Failed tasks that have waited long enough; one that somebody holds will be seen the next time.
WITH ripe AS (
    SELECT task_id FROM tasks
    WHERE state = 'QUEUED' AND not_before IS NOT NULL AND not_before <= now()
    FOR UPDATE SKIP LOCKED
)
UPDATE tasks t SET not_before = NULL FROM ripe WHERE t.task_id = ripe.task_id;

-- name: heads
-- The first tasks of each class and priority: so many entries of the index, whatever lies behind them.
-- The wanted number goes to the most urgent; of what is below them the first is read, in case that they
-- cannot be placed after all. Of classes without room `few` are read: for these room may be made. Lists of
-- classes are looked up by IN and not by ANY, which compares one by one.
WITH waiting AS MATERIALIZED (
    SELECT class_id, priority, sum(queued)::bigint AS queued
    FROM depths
    WHERE class_id NOT IN (SELECT unnest(%(passed_over)s::int[]))
    GROUP BY class_id, priority
    HAVING sum(queued) > 0
),
ranked AS MATERIALIZED (
    SELECT
        w.class_id, w.priority, w.queued,
        w.class_id IN (SELECT unnest(%(without_room)s::int[])) AS blocked,
        CASE WHEN %(aging_s)s <= 0 THEN w.priority ELSE least(9, w.priority + least(
            %(aging_cap)s, floor(extract(epoch FROM now() - t.submitted_at) / %(aging_s)s)
        )) END AS level
    FROM waiting w
    CROSS JOIN LATERAL (
        SELECT t.submitted_at FROM tasks t
        WHERE t.state = 'QUEUED' AND t.not_before IS NULL
            AND t.class_id = w.class_id AND t.priority = w.priority
        ORDER BY t.class_id, t.priority DESC, t.task_id
        LIMIT 1
    ) AS t
),
heads AS MATERIALIZED (
    SELECT
        class_id, priority, queued,
        CASE WHEN blocked THEN %(few)s ELSE greatest(1, ceil(
            (%(rows)s - coalesce(sum(queued) OVER (
                PARTITION BY blocked ORDER BY level DESC GROUPS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ), 0)) / count(*) OVER (PARTITION BY blocked, level)
        )) END AS size
    FROM ranked
)
SELECT
    h.class_id, h.priority, h.queued, uuid_send(t.task_id), t.items - t.items_done, t.payload_bytes,
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
-- Leases and their records on the agents' lanes, by whoever leads: without a row, the token is not the
-- newest. One statement: a leader that stops cannot stop in the middle of it, holding up the next one.
-- SKIP LOCKED: a task that somebody is just granting, cancelling or ending is no business of ours.
-- Tasks are found by id and judged afterwards: with their state among the conditions, the planner of a
-- database without statistics would look through the whole queue for them.
-- Lanes are taken in one order, as in outgoing.sql, append.
WITH lead AS (
    UPDATE leadership SET seen_at = now(), fair = coalesce(%(fair)s, fair) WHERE token = %(token)s
    RETURNING token
),
wanted AS (
    SELECT * FROM unnest(
        %(task_ids)s::uuid[], %(agent_ids)s::int[], %(ttls)s::float8[], %(priorities)s::smallint[],
        %(whys)s::text[]
    ) WITH ORDINALITY AS w (task_id, agent_id, ttl_s, priority, why, position)
),
held AS MATERIALIZED (
    SELECT t.task_id, t.state, t.not_before FROM tasks t
    WHERE t.task_id = ANY (%(task_ids)s::uuid[]) AND EXISTS (SELECT FROM lead)
    ORDER BY t.task_id
    FOR UPDATE SKIP LOCKED
),
granted AS (
    UPDATE tasks t SET state = 'PROCESSING', attempt = t.attempt + 1
    FROM held h
    WHERE t.task_id = h.task_id AND h.state = 'QUEUED' AND h.not_before IS NULL
    RETURNING t.task_id, t.attempt
),
chosen AS (
    SELECT DISTINCT ON (g.task_id) g.task_id, g.attempt, w.agent_id, w.ttl_s, w.priority, w.why, w.position
    FROM granted g JOIN wanted w USING (task_id)
    ORDER BY g.task_id, w.position
),
leased AS (
    INSERT INTO leases (task_id, attempt, agent_id, priority, why, expires_at)
    SELECT task_id, attempt, agent_id, priority, why, now() + make_interval(secs => ttl_s) FROM chosen
),
totals AS (
    SELECT agent_id, count(*) AS size FROM chosen GROUP BY agent_id
),
numbered AS (
    INSERT INTO down_lanes AS d (agent_id, lane, numbered)
    SELECT agent_id, %(lane)s, size FROM totals ORDER BY agent_id
    ON CONFLICT (agent_id, lane) DO UPDATE SET numbered = d.numbered + excluded.numbered
    RETURNING agent_id, numbered
),
placed AS (
    SELECT
        c.task_id, c.agent_id, c.attempt, c.position,
        n.numbered - t.size + row_number() OVER (PARTITION BY c.agent_id ORDER BY c.position) AS number
    FROM chosen c JOIN totals t USING (agent_id) JOIN numbered n USING (agent_id)
),
written AS (
    INSERT INTO outgoing (agent_id, lane, first, last, kind, task_id, attempt)
    SELECT agent_id, %(lane)s, number, number, %(kind)s, task_id, attempt FROM placed
)
SELECT uuid_send(p.task_id), p.agent_id, p.attempt, p.number
FROM lead LEFT JOIN placed p ON true
ORDER BY p.position;

-- name: renew
-- SKIP LOCKED: a lease that is just ending needs no renewal.
WITH moved AS (
    SELECT l.task_id, r.progress
    FROM leases l
    JOIN unnest(%(task_ids)s::uuid[], %(attempts)s::smallint[], %(progress)s::bigint[])
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
    SELECT * FROM unnest(%(task_ids)s::uuid[], %(attempts)s::smallint[], %(urgent)s::text[])
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
