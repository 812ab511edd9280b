-- name: list
SELECT name, weight, max_running, max_queued, max_per_second, default_priority, when_full, updated_at
FROM queues
WHERE %(name)s::text IS NULL OR name = %(name)s
ORDER BY name;

-- name: put
-- One that says what is there already changes nothing, not even the instant.
INSERT INTO queues AS q (
    name, weight, max_running, max_queued, max_per_second, default_priority, when_full
)
VALUES (
    %(name)s, %(weight)s, %(max_running)s, %(max_queued)s, %(max_per_second)s, %(default_priority)s,
    %(when_full)s
)
ON CONFLICT (name) DO UPDATE SET
    weight = excluded.weight, max_running = excluded.max_running, max_queued = excluded.max_queued,
    max_per_second = excluded.max_per_second, default_priority = excluded.default_priority,
    when_full = excluded.when_full, updated_at = now()
WHERE (q.weight, q.max_running, q.max_queued, q.max_per_second, q.default_priority, q.when_full)
    IS DISTINCT FROM (
        excluded.weight, excluded.max_running, excluded.max_queued, excluded.max_per_second,
        excluded.default_priority, excluded.when_full
    );

-- name: remove
DELETE FROM queues WHERE name = %(name)s;

-- name: hold
-- Who admits to a queue with a limit does so alone, here and in other hubs, until the commit.
SELECT pg_advisory_xact_lock(%(class)s, place) FROM (
    SELECT DISTINCT hashtext(name) AS place FROM unnest(%(queues)s::text[]) AS q (name) ORDER BY place
) AS places;

-- name: depths
-- How many tasks of some queues wait, by priority; and of these, how many nobody's device waits for.
SELECT
    c.queue, d.priority, sum(d.queued)::bigint,
    coalesce(sum(d.queued) FILTER (WHERE c.origin_agent = 0), 0)::bigint
FROM depths d JOIN classes c USING (class_id)
WHERE c.queue = ANY (%(queues)s::text[])
GROUP BY c.queue, d.priority
HAVING sum(d.queued) > 0;

-- name: known_keys
SELECT key FROM idempotency_keys WHERE key = ANY (%(keys)s::text[]);

-- name: youngest
-- Of each queue and priority so many of the youngest waiting tasks, read off the ends of their classes in
-- the index. Not those that agents handed over: somebody's device waits for these.
WITH wanted AS (
    SELECT * FROM unnest(%(queues)s::text[], %(priorities)s::smallint[], %(counts)s::int[])
        AS w (queue, priority, n)
),
heads AS MATERIALIZED (
    SELECT d.class_id, d.priority, c.queue, w.n
    FROM depths d JOIN classes c USING (class_id) JOIN wanted w ON w.queue = c.queue AND w.priority = d.priority
    WHERE c.origin_agent = 0
    GROUP BY d.class_id, d.priority, c.queue, w.n
    HAVING sum(d.queued) > 0
),
ends AS (
    SELECT
        t.task_id, h.queue, h.n,
        row_number() OVER (PARTITION BY h.queue, h.priority ORDER BY t.task_id DESC) AS place
    FROM heads h
    CROSS JOIN LATERAL (
        SELECT t.task_id FROM tasks t
        WHERE t.state = 'QUEUED' AND t.not_before IS NULL
            AND t.class_id = h.class_id AND t.priority = h.priority
        ORDER BY t.class_id DESC, t.priority, t.task_id DESC
        LIMIT h.n
    ) AS t
)
SELECT task_id, queue FROM ends WHERE place <= n;

-- name: heads
-- What waits, by class and priority with the age of the first; one probe of the index for each.
WITH heads AS MATERIALIZED (
    SELECT c.queue, d.class_id, d.priority, sum(d.queued)::bigint AS queued
    FROM depths d JOIN classes c USING (class_id)
    GROUP BY c.queue, d.class_id, d.priority
    HAVING sum(d.queued) > 0
)
SELECT h.queue, h.priority, sum(h.queued)::bigint, extract(epoch FROM now() - min(t.submitted_at))::float8
FROM heads h
LEFT JOIN LATERAL (
    SELECT t.submitted_at FROM tasks t
    WHERE t.state = 'QUEUED' AND t.not_before IS NULL AND t.class_id = h.class_id AND t.priority = h.priority
    ORDER BY t.class_id, t.priority DESC, t.task_id
    LIMIT 1
) AS t ON true
GROUP BY h.queue, h.priority;
