-- Tasks and what is kept of them when they have ended.

-- name: insert
-- A task that was accepted; the parameters are the fields of `records.Task`.
INSERT INTO tasks (
    task_id, origin, holder, hub_attempt, model, version, rank, queue, tag, device, content_type, items,
    items_done, attempt, max_attempts, crashes, timeout_ms, deadline_ms, accepted_us, response_topic,
    correlation, client_id, mqtt_version, traceparent, idempotency_key, payload
) VALUES (
    :task_id, :origin, :holder, :hub_attempt, :model, :version, -:priority, :queue, :tag, :device,
    :content_type, :items, :items_done, :attempt, :max_attempts, :crashes, :timeout_ms, :deadline_ms,
    :accepted_us, :response_topic, :correlation, :client_id, :mqtt_version, :traceparent,
    :idempotency_key, :payload
)

-- name: lease
-- A task that the hub leased to us. One that is here already, an older lease of it or a task that we
-- handed over ourselves, goes on under the new number; an older number changes nothing.
INSERT INTO tasks (
    task_id, origin, holder, hub_attempt, model, version, rank, queue, tag, device, content_type, items,
    items_done, attempt, max_attempts, crashes, timeout_ms, deadline_ms, accepted_us, traceparent, payload
) VALUES (
    :task_id, :origin, :holder, :hub_attempt, :model, :version, -:priority, :queue, :tag, :device,
    :content_type, :items, :items_done, :attempt, :max_attempts, :crashes, :timeout_ms, :deadline_ms,
    :accepted_us, :traceparent, :payload
)
ON CONFLICT (task_id) DO UPDATE SET
    holder = 'edge', hub_attempt = excluded.hub_attempt, attempt = excluded.attempt,
    items_done = excluded.items_done
WHERE excluded.hub_attempt > coalesce(tasks.hub_attempt, 0)

-- name: find
SELECT
    seq, task_id, origin, holder, hub_attempt, model, version, -rank AS priority, queue, tag, device,
    content_type, items, items_done, attempt, max_attempts, crashes, timeout_ms, deadline_ms, accepted_us, response_topic,
    correlation, client_id, mqtt_version, traceparent, idempotency_key
FROM tasks
WHERE task_id = :task_id

-- name: find_by_key
SELECT task_id FROM tasks WHERE idempotency_key = :key

-- name: waiting
-- What runs next, after a given place in that order.
SELECT
    seq, task_id, origin, holder, hub_attempt, model, version, -rank AS priority, queue, tag, device,
    content_type, items, items_done, attempt, max_attempts, crashes, timeout_ms, deadline_ms, accepted_us, response_topic,
    correlation, client_id, mqtt_version, traceparent, idempotency_key
FROM tasks
WHERE holder = :holder AND (rank, tag, seq) > (:rank, :tag, :seq)
ORDER BY rank, tag, seq
LIMIT :limit

-- name: payload
SELECT payload FROM tasks WHERE task_id = :task_id

-- name: count
-- Tasks and their items, by holder, model and priority.
SELECT holder, model, -rank, count(*), sum(items) FROM tasks GROUP BY holder, model, rank

-- name: end
DELETE FROM tasks WHERE task_id = :task_id RETURNING idempotency_key

-- name: hand_over
UPDATE tasks SET holder = 'hub' WHERE task_id = :task_id AND holder = 'edge' AND origin = 'device'

-- name: reclaim
UPDATE tasks SET holder = 'edge', hub_attempt = 0 WHERE task_id = :task_id AND holder = 'hub'

-- name: mark_crashed
-- The attempt of a device's task counts as tried; a lease's number is the hub's and stays.
UPDATE tasks SET crashes = crashes + 1, attempt = attempt + (origin = 'device')
WHERE task_id = :task_id AND holder = 'edge'

-- name: recall
-- The ended task of an idempotency key.
SELECT task_id, topic, content_type, body FROM idempotency WHERE key = :key

-- name: remember
INSERT INTO idempotency (key, task_id, topic, content_type, body, bytes_so_far)
VALUES (
    :key, :task_id, :topic, :content_type, :body,
    :bytes + coalesce((SELECT bytes_so_far FROM idempotency ORDER BY seq DESC LIMIT 1), 0)
)
RETURNING seq, bytes_so_far

-- name: remembered
-- From the oldest on; meant to be read no further than needed.
SELECT seq, bytes_so_far FROM idempotency ORDER BY seq

-- name: forget
DELETE FROM idempotency WHERE seq <= :seq

-- name: reply
INSERT INTO replies (task_id, topic, correlation, content_type, body)
VALUES (:task_id, :topic, :correlation, :content_type, :body)

-- name: replied
DELETE FROM replies WHERE task_id = :task_id

-- name: unreplied
SELECT task_id, topic, correlation, content_type, body FROM replies
WHERE task_id > :after
ORDER BY task_id
LIMIT :limit

-- name: count_unreplied
SELECT count(*) FROM replies
