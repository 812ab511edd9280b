-- name: lock
-- Tasks as they stand, locked in the order of their ids, so that two of these never wait for each other.
SELECT
    t.task_id, t.state, t.model, t.items, t.items_done, t.attempt, t.failures, t.max_attempts,
    coalesce(t.deadline_at <= now(), false) AS overdue,
    t.origin_agent
FROM tasks t
WHERE t.task_id = ANY (%(task_ids)s::uuid[])
ORDER BY t.task_id
FOR UPDATE OF t;

-- name: leases
-- Read after the tasks are locked: nobody grants or takes them now.
SELECT task_id, agent_id, attempt FROM leases WHERE task_id = ANY (%(task_ids)s::uuid[]);

-- name: origins
-- All epochs of the places of these agents.
SELECT a.agent_id, array_agg(b.agent_id)
FROM agents a JOIN agents b USING (site, name)
WHERE a.agent_id = ANY (%(agent_ids)s::int[])
GROUP BY a.agent_id;

-- name: change
-- `was` guards: a row that is not as it was locked is left alone.
UPDATE tasks t SET
    state = c.state,
    reason = c.reason,
    error = c.error,
    items_done = c.items_done,
    failures = c.failures,
    not_before = now() + make_interval(secs => nullif(c.delay_s, 0)),
    finished_at = CASE WHEN c.state IN ('COMPLETED', 'TERMINATED') THEN now() END
FROM unnest(
    %(task_ids)s::uuid[], %(was)s::text[], %(states)s::text[], %(reasons)s::text[], %(errors)s::text[],
    %(items_done)s::int[], %(failures)s::smallint[], %(delays)s::float8[]
) AS c (task_id, was, state, reason, error, items_done, failures, delay_s)
WHERE t.task_id = c.task_id AND t.state = c.was;

-- name: record
-- What agents report of their attempts; of somebody else's they have nothing to say.
INSERT INTO attempts AS a (
    task_id, attempt, agent_id, granted_at, state, reason, error, items_done, run_us, why
)
SELECT
    r.task_id, r.attempt, %(agent_id)s, l.granted_at, r.state, r.reason, r.error, r.items_done, r.run_us,
    l.why
FROM unnest(
    %(task_ids)s::uuid[], %(attempts)s::smallint[], %(states)s::text[], %(reasons)s::text[],
    %(errors)s::text[], %(items_done)s::int[], %(run_us)s::bigint[]
) AS r (task_id, attempt, state, reason, error, items_done, run_us)
LEFT JOIN leases l USING (task_id, attempt)
ON CONFLICT (task_id, attempt) DO UPDATE SET
    state = excluded.state, reason = excluded.reason, error = excluded.error,
    items_done = excluded.items_done, run_us = excluded.run_us, ended_at = excluded.ended_at
WHERE a.agent_id = excluded.agent_id;

-- name: release
-- Leases that end, with what the hub can say of attempts that their agents have not reported (yet). After
-- `change`: the lease of a task that was left alone stays, for without it nobody would miss the task.
WITH released AS (
    DELETE FROM leases l
    USING unnest(
        %(task_ids)s::uuid[], %(states)s::text[], %(reasons)s::text[], %(errors)s::text[], %(items_done)s::int[]
    ) AS c (task_id, state, reason, error, items_done)
    WHERE l.task_id = c.task_id
        AND NOT EXISTS (SELECT FROM tasks t WHERE t.task_id = l.task_id AND t.state = 'PROCESSING')
    RETURNING
        l.task_id, l.attempt, l.agent_id, l.granted_at, l.why, c.state, c.reason, c.error, c.items_done
)
INSERT INTO attempts (task_id, attempt, agent_id, granted_at, state, reason, error, items_done, why)
SELECT task_id, attempt, agent_id, granted_at, state, reason, error, items_done, why FROM released
ON CONFLICT (task_id, attempt) DO NOTHING;

-- name: drop_payloads
DELETE FROM payloads WHERE task_id = ANY (%(task_ids)s::uuid[]);

-- name: checkpoints
-- Of tasks of many items, the first item without a row: what is before it need not run again.
SELECT t.task_id, coalesce(min(n.item), t.items)
FROM tasks t
LEFT JOIN LATERAL (
    SELECT g.item FROM generate_series(t.items_done, t.items - 1) AS g (item)
    WHERE NOT EXISTS (SELECT FROM results r WHERE r.task_id = t.task_id AND r.item = g.item)
    ORDER BY g.item
    LIMIT 1
) AS n ON true
WHERE t.task_id = ANY (%(task_ids)s::uuid[]) AND t.items > 1
GROUP BY t.task_id, t.items;
