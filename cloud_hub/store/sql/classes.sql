-- name: there
-- Those that are known, and whether another transaction has committed them.
SELECT
    c.class_id, c.model, c.version, c.queue, c.selector, c.origin_agent,
    c.xmin IS DISTINCT FROM pg_current_xact_id_if_assigned()::xid
FROM unnest(
    %(models)s::text[], %(versions)s::text[], %(queues)s::text[], %(selectors)s::text[], %(origins)s::int[]
) AS w (model, version, queue, selector, origin_agent)
JOIN classes c USING (model, version, queue, selector, origin_agent);

-- name: make
-- In one order, so that two of these never wait for each other.
INSERT INTO classes (model, version, queue, selector, origin_agent)
SELECT * FROM unnest(
    %(models)s::text[], %(versions)s::text[], %(queues)s::text[], %(selectors)s::text[], %(origins)s::int[]
) AS w (model, version, queue, selector, origin_agent)
ORDER BY model, version, queue, selector, origin_agent
ON CONFLICT DO NOTHING;

-- name: select
SELECT c.class_id, c.model, c.version, c.queue, c.selector, c.origin_agent, a.site
FROM classes c LEFT JOIN agents a ON a.agent_id = c.origin_agent
WHERE c.class_id = ANY (%(class_ids)s::int[]);

-- name: depths
-- How many tasks wait, by class and priority; exact, at any depth.
SELECT c.model, c.queue, d.priority, sum(d.queued)::bigint
FROM depths d JOIN classes c USING (class_id)
GROUP BY c.model, c.queue, d.priority
HAVING sum(d.queued) > 0;

-- name: compact
WITH gone AS (DELETE FROM depths RETURNING *)
INSERT INTO depths (class_id, priority, queued)
SELECT class_id, priority, sum(queued) FROM gone GROUP BY class_id, priority HAVING sum(queued) <> 0;
