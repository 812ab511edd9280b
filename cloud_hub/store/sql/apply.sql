-- name: stage_results
-- Where a batch goes that clashes with what is recorded; kept for the connection's life, emptied by each commit.
CREATE TEMP TABLE IF NOT EXISTS staged_results (
    LIKE results INCLUDING DEFAULTS, position integer NOT NULL
) ON COMMIT DELETE ROWS;

-- name: insert_staged
-- The first of each key, in the order of the keys, so that two batches of the same rows do not wait for
-- each other in a circle. Those that got in leave the staging table.
WITH firsts AS (
    SELECT DISTINCT ON (task_id, item) *
    FROM staged_results
    ORDER BY task_id, item, position
),
inserted AS (
    INSERT INTO results (
        task_id, item, agent_id, attempt, device, model, version, outcome, label, score, output, error,
        observed_at, clock_offset_us, clock_error_us, wait_us, run_us
    )
    SELECT
        task_id, item, agent_id, attempt, device, model, version, outcome, label, score, output, error,
        observed_at, clock_offset_us, clock_error_us, wait_us, run_us
    FROM firsts
    ON CONFLICT (task_id, item) DO NOTHING
    RETURNING task_id, item
)
DELETE FROM staged_results s
USING firsts f JOIN inserted i USING (task_id, item)
WHERE s.position = f.position
RETURNING s.position;

-- name: shadow_staged
-- What is left is compared with what is there, this batch's own rows among it.
WITH rest AS (
    DELETE FROM staged_results RETURNING *
),
shadowed AS (
    INSERT INTO shadows (task_id, item, agent_id, attempt, score, outcome, label, agrees)
    SELECT
        s.task_id, s.item, s.agent_id, s.attempt, s.score, s.outcome, s.label,
        s.outcome = r.outcome AND s.label IS NOT DISTINCT FROM r.label
    FROM rest s JOIN results r USING (task_id, item)
    RETURNING agrees
)
SELECT count(*), count(*) FILTER (WHERE NOT agrees) FROM shadowed;

-- name: tombstones
-- Tasks that their origin took back and ended, while the record that hands them over is still on its
-- way: they are there, ended, when it comes. Their result rows, which come first, describe them.
INSERT INTO tasks (
    task_id, state, reason, error, finished_at, origin_agent, items, items_done, payload_bytes, attempt,
    max_attempts, priority, model, version, device, queue, content_type, observed_at
)
SELECT
    e.task_id, e.state, e.reason, e.error, now(), %(agent_id)s, greatest(r.items, e.items_done, 1),
    CASE e.state WHEN 'COMPLETED' THEN greatest(r.items, e.items_done, 1) ELSE e.items_done END,
    0, 0, 1, 5, coalesce(r.model, ''), r.version, r.device, %(queue)s, '', coalesce(r.observed_at, now())
FROM unnest(
    %(task_ids)s::uuid[], %(states)s::text[], %(reasons)s::text[], %(errors)s::text[], %(items_done)s::int[]
) AS e (task_id, state, reason, error, items_done)
CROSS JOIN LATERAL (
    SELECT
        count(*)::int AS items, min(model) AS model, min(version) AS version, min(device) AS device,
        min(observed_at) AS observed_at
    FROM results r WHERE r.task_id = e.task_id
) AS r
ORDER BY e.task_id
ON CONFLICT (task_id) DO NOTHING
RETURNING task_id;

-- name: stage_tasks
CREATE TEMP TABLE IF NOT EXISTS staged_tasks (
    task_id uuid, model text, version text, priority smallint, queue text, device text, content_type text,
    payload bytea, items integer, timeout_ms bigint, deadline_ms bigint, traceparent text,
    max_attempts smallint, idempotency_key text, response_topic text, correlation bytea,
    observed_at timestamptz
) ON COMMIT DELETE ROWS;

-- name: make_classes
INSERT INTO classes (model, version, queue, origin_agent)
SELECT DISTINCT model, coalesce(version, ''), queue, %(agent_id)s FROM staged_tasks
WHERE payload IS NOT NULL
ORDER BY 1, 2, 3
ON CONFLICT DO NOTHING;

-- name: insert_tasks
-- A record without payload was withdrawn before it was sent; one that is known stays as it is.
WITH staged AS (
    DELETE FROM staged_tasks RETURNING *
),
taken AS (
    INSERT INTO tasks (
        task_id, model, version, priority, queue, device, content_type, payload_bytes, items, timeout_ms,
        deadline_at, traceparent, max_attempts, idempotency_key, response_topic, correlation, observed_at,
        class_id, origin_agent
    )
    SELECT DISTINCT ON (s.task_id)
        s.task_id, s.model, s.version, s.priority, s.queue, s.device, s.content_type, octet_length(s.payload),
        s.items, s.timeout_ms, now() + s.deadline_ms * interval '1 millisecond', s.traceparent,
        s.max_attempts, s.idempotency_key, s.response_topic, s.correlation, s.observed_at,
        c.class_id, %(agent_id)s
    FROM staged s
    JOIN classes c ON c.model = s.model AND c.version = coalesce(s.version, '') AND c.queue = s.queue
        AND c.selector = '' AND c.origin_agent = %(agent_id)s
    WHERE s.payload IS NOT NULL
    ORDER BY s.task_id
    ON CONFLICT (task_id) DO NOTHING
    RETURNING task_id, model
),
kept AS (
    INSERT INTO payloads (task_id, body)
    SELECT DISTINCT ON (task_id) task_id, payload
    FROM staged JOIN taken USING (task_id)
    WHERE payload IS NOT NULL
)
SELECT model, count(*) FROM taken GROUP BY model;
