-- name: claim
-- One row a key, whether it is new or not; a key that another transaction is just claiming is waited
-- for. In the order of the keys, so that two of these never wait for each other.
INSERT INTO idempotency_keys AS k (key, task_id)
SELECT key, task_id FROM unnest(%(keys)s::text[], %(task_ids)s::uuid[]) AS c (key, task_id) ORDER BY key
ON CONFLICT (key) DO UPDATE SET task_id = k.task_id
RETURNING key, task_id;

-- name: now
SELECT now();

-- name: insert
WITH stored AS (
    INSERT INTO tasks (
        task_id, observed_at, deadline_at, class_id, timeout_ms, items, payload_bytes, priority, max_attempts,
        model, queue, content_type, version, device, traceparent, idempotency_key, client_id
    )
    SELECT * FROM unnest(
        %(task_id)s::uuid[], %(observed_at)s::timestamptz[], %(deadline_at)s::timestamptz[],
        %(class_id)s::int[], %(timeout_ms)s::bigint[], %(items)s::int[], %(payload_bytes)s::int[],
        %(priority)s::smallint[], %(max_attempts)s::smallint[], %(model)s::text[], %(queue)s::text[],
        %(content_type)s::text[], %(version)s::text[], %(device)s::text[], %(traceparent)s::text[],
        %(idempotency_key)s::text[], %(client_id)s::text[]
    )
)
INSERT INTO payloads (task_id, body) SELECT * FROM unnest(%(task_id)s::uuid[], %(bodies)b::bytea[]);

-- name: select
-- The tasks are chosen before anything is joined to them, so that a page is read off an index.
SELECT
    t.task_id, t.state, t.reason, t.error, t.model, t.version, t.priority, t.queue, coalesce(c.selector, '') AS selector, t.device,
    t.content_type, t.payload_bytes, t.items, t.items_done, t.attempt, t.failures, t.max_attempts,
    t.timeout_ms, t.deadline_at, t.not_before, t.idempotency_key, t.client_id, t.traceparent,
    t.observed_at, t.submitted_at, t.finished_at,
    o.site AS origin_site, o.name AS origin_name, h.site AS agent_site, h.name AS agent_name
FROM (SELECT * FROM tasks t WHERE {conditions} ORDER BY t.task_id DESC LIMIT %(limit)s) AS t
LEFT JOIN classes c ON c.class_id = t.class_id
LEFT JOIN agents o ON o.agent_id = t.origin_agent
LEFT JOIN leases l ON l.task_id = t.task_id
LEFT JOIN agents h ON h.agent_id = l.agent_id
ORDER BY t.task_id DESC;

-- name: attempts
SELECT
    r.attempt, r.agent_id, g.site, g.name, r.state, r.reason, r.error, r.items_done, r.run_us, r.granted_at,
    r.ended_at
FROM (
    SELECT attempt, agent_id, state, reason, error, items_done, run_us, granted_at, ended_at
    FROM attempts WHERE task_id = %(task_id)s
    UNION ALL
    SELECT l.attempt, l.agent_id, 'PROCESSING', NULL, NULL, t.items_done, NULL, l.granted_at, NULL
    FROM leases l JOIN tasks t USING (task_id) WHERE l.task_id = %(task_id)s
) AS r
JOIN agents g USING (agent_id)
ORDER BY r.attempt;

-- name: payload
SELECT body FROM payloads WHERE task_id = %(task_id)s;

-- name: dead_letters
-- Those that can run again: their payload is there.
SELECT t.task_id FROM tasks t
WHERE t.task_id = ANY (%(task_ids)s::uuid[]) AND t.state = 'TERMINATED'
    AND EXISTS (SELECT FROM payloads p WHERE p.task_id = t.task_id)
ORDER BY t.task_id
FOR UPDATE OF t;

-- name: clear_results
-- A row that says how the last run failed would stand in the way of a better one.
WITH cleared AS (
    DELETE FROM results WHERE task_id = ANY (%(task_ids)s::uuid[]) AND outcome <> 'ok' RETURNING *
)
INSERT INTO shadows (task_id, item, agent_id, attempt, score, outcome, label)
SELECT task_id, item, agent_id, attempt, score, outcome, label FROM cleared;

-- name: requeue
UPDATE tasks SET
    state = 'QUEUED', reason = NULL, error = NULL, finished_at = NULL, deadline_at = NULL, failures = 0
WHERE task_id = ANY (%(task_ids)s::uuid[]) AND state = 'TERMINATED';

-- name: forget
-- Ended tasks of long ago, with all that belongs to them but their result rows.
WITH old AS (
    SELECT task_id, idempotency_key FROM tasks
    WHERE task_id < %(until)s AND finished_at < %(before)s
    ORDER BY task_id
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
),
without_payload AS (DELETE FROM payloads p USING old WHERE p.task_id = old.task_id),
without_attempts AS (DELETE FROM attempts a USING old WHERE a.task_id = old.task_id),
without_key AS (
    DELETE FROM idempotency_keys k USING old WHERE k.key = old.idempotency_key AND k.task_id = old.task_id
)
DELETE FROM tasks t USING old WHERE t.task_id = old.task_id;

-- name: count_states
-- The many that are completed are those that are left of all.
WITH open AS (
    SELECT state, count(*) AS n FROM tasks WHERE state <> 'COMPLETED' GROUP BY state
)
SELECT state, n FROM open
UNION ALL
SELECT 'COMPLETED', (SELECT count(*) FROM tasks) - (SELECT coalesce(sum(n), 0) FROM open)::bigint;
