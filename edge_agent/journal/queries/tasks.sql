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

-- name: tag
INSERT INTO tags (task_id, tags) VALUES (:task_id, :tags)

-- name: insert_stream
INSERT INTO streams (task_id, stream) VALUES (:task_id, :stream)

-- name: renew
-- A newer lease of a task that is here: an older lease of it, or a task that we handed over ourselves.
UPDATE tasks SET holder = 'edge', hub_attempt = :hub_attempt, attempt = :attempt WHERE task_id = :task_id

-- name: find
SELECT
    seq, t.task_id, origin, holder, hub_attempt, model, version, -rank AS priority, queue, tag, device,
    content_type, items, coalesce(c.items_done, 0) AS items_done, attempt, max_attempts, crashes, timeout_ms,
    deadline_ms, accepted_us, response_topic, correlation, client_id, mqtt_version, traceparent,
    idempotency_key, tags, stream
FROM tasks AS t
LEFT JOIN checkpoints AS c ON c.task_id = t.task_id
LEFT JOIN tags AS g ON g.task_id = t.task_id
LEFT JOIN streams AS s ON s.task_id = t.task_id
WHERE t.task_id = :task_id

-- name: find_by_key
SELECT task_id FROM tasks WHERE idempotency_key = :key

-- name: waiting
-- What runs next, after a given place in that order.
SELECT
    seq, t.task_id, origin, holder, hub_attempt, model, version, -rank AS priority, queue, tag, device,
    content_type, items, coalesce(c.items_done, 0) AS items_done, attempt, max_attempts, crashes, timeout_ms,
    deadline_ms, accepted_us, response_topic, correlation, client_id, mqtt_version, traceparent,
    idempotency_key, tags, stream
FROM tasks AS t
LEFT JOIN checkpoints AS c ON c.task_id = t.task_id
LEFT JOIN tags AS g ON g.task_id = t.task_id
LEFT JOIN streams AS s ON s.task_id = t.task_id
WHERE holder = :holder AND (rank, tag, seq) > (:rank, :tag, :seq)
ORDER BY rank, tag, seq
LIMIT :limit

-- name: oldest
-- Of some models, what came first, whatever its priority. Reads past the tasks of others: by their place, not
-- by the index, which would have all of them sorted.
SELECT
    seq, t.task_id, origin, holder, hub_attempt, model, version, -rank AS priority, queue, tag, device,
    content_type, items, coalesce(c.items_done, 0) AS items_done, attempt, max_attempts, crashes, timeout_ms,
    deadline_ms, accepted_us, response_topic, correlation, client_id, mqtt_version, traceparent,
    idempotency_key, tags, stream
FROM tasks AS t
LEFT JOIN checkpoints AS c ON c.task_id = t.task_id
LEFT JOIN tags AS g ON g.task_id = t.task_id
LEFT JOIN streams AS s ON s.task_id = t.task_id
WHERE +holder = 'edge' AND model IN (SELECT value FROM json_each(:models))
ORDER BY seq
LIMIT :limit

-- name: payload
SELECT payload FROM tasks WHERE task_id = :task_id

-- name: count
-- Tasks and their items, by holder, model and priority.
SELECT holder, model, -rank, count(*), sum(items) FROM tasks GROUP BY holder, model, rank

-- name: count_done
-- Of those items the ones that are done, by holder, model and priority; few tasks have any.
SELECT holder, model, -rank, c.items_done
FROM checkpoints AS c JOIN tasks AS t ON t.task_id = c.task_id

-- name: count_leased
-- Items of the hub's tasks that are not done; reads all tasks, and is asked once, at the start.
SELECT coalesce(sum(t.items - coalesce(c.items_done, 0)), 0)
FROM tasks AS t LEFT JOIN checkpoints AS c ON c.task_id = t.task_id
WHERE t.origin = 'hub'

-- name: end
-- Whatever has become of it.
DELETE FROM tasks WHERE task_id = :task_id
RETURNING
    idempotency_key, items, EXISTS (SELECT 1 FROM tags WHERE task_id = :task_id),
    EXISTS (SELECT 1 FROM streams WHERE task_id = :task_id)

-- name: end_attempt
-- The same, unless a newer lease of it has come.
DELETE FROM tasks WHERE task_id = :task_id AND hub_attempt = :attempt
RETURNING
    idempotency_key, items, EXISTS (SELECT 1 FROM tags WHERE task_id = :task_id),
    EXISTS (SELECT 1 FROM streams WHERE task_id = :task_id)

-- name: give_back
-- A device's task goes back to the hub, unless a newer lease of it has come. It keeps its number, so that
-- only a newer lease can bring it again.
UPDATE tasks SET holder = 'hub' WHERE task_id = :task_id AND hub_attempt = :attempt AND holder = 'edge'

-- name: checkpoint
-- So many items are done of a task that is to run here.
INSERT INTO checkpoints (task_id, items_done)
SELECT task_id, :items_done FROM tasks WHERE task_id = :task_id AND holder = 'edge'
ON CONFLICT (task_id) DO UPDATE SET items_done = excluded.items_done
WHERE excluded.items_done > checkpoints.items_done

-- name: survived
-- It came further than where the agent died: that was not this task's fault.
UPDATE tasks SET crashes = 0 WHERE task_id = :task_id AND crashes > 0

-- name: keep_part
INSERT INTO parts (task_id, first, failed, error, items) VALUES (:task_id, :first, :failed, :error, :items)

-- name: parts
SELECT first, failed, error, items FROM parts WHERE task_id = :task_id ORDER BY first

-- name: drop_checkpoint
DELETE FROM checkpoints WHERE task_id = :task_id

-- name: drop_parts
DELETE FROM parts WHERE task_id = :task_id

-- name: drop_stream
DELETE FROM streams WHERE task_id = :task_id

-- name: drop_tags
DELETE FROM tags WHERE task_id = :task_id

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
