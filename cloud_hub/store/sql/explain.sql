-- name: standing
SELECT
    t.class_id, c.model, nullif(c.version, ''), c.queue, c.selector, nullif(c.origin_agent, 0), t.priority,
    t.items - t.items_done,
    extract(epoch FROM now() - t.submitted_at)::float8,
    extract(epoch FROM t.not_before - now())::float8
FROM tasks t JOIN classes c USING (class_id)
WHERE t.task_id = %(task_id)s AND t.state = 'QUEUED';

-- name: depths
-- What waits for a model, by priority: in one class, and in the others.
SELECT c.class_id = %(class_id)s, d.priority, sum(d.queued)::bigint
FROM depths d JOIN classes c USING (class_id)
WHERE c.model = %(model)s
GROUP BY 1, 2
HAVING sum(d.queued) > 0;

-- name: before
-- The tasks before one in its class and priority: entries of the index, so many at most.
SELECT count(*) FROM (
    SELECT FROM tasks t
    WHERE t.state = 'QUEUED' AND t.not_before IS NULL AND t.class_id = %(class_id)s
        AND t.priority = %(priority)s AND t.task_id < %(task_id)s
    ORDER BY t.class_id, t.priority DESC, t.task_id
    LIMIT %(limit)s
) AS before;

-- name: size
-- How many items the first tasks of a class and priority have left.
SELECT avg(items)::float8 FROM (
    SELECT t.items - t.items_done AS items FROM tasks t
    WHERE t.state = 'QUEUED' AND t.not_before IS NULL AND t.class_id = %(class_id)s
        AND t.priority = %(priority)s
    ORDER BY t.class_id, t.priority DESC, t.task_id
    LIMIT 100
) AS firsts;

-- name: decisions
SELECT attempt, why, false FROM attempts WHERE task_id = %(task_id)s AND why IS NOT NULL
UNION ALL
SELECT l.attempt, l.why, coalesce(t.preempted_at >= l.granted_at, false)
FROM leases l JOIN tasks t USING (task_id) WHERE l.task_id = %(task_id)s;

-- name: names
SELECT agent_id, site || '/' || name FROM agents WHERE agent_id = ANY (%(agent_ids)s::int[]);
