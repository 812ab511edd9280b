-- name: open
-- The rows that a batch adds to are there then, and locked below.
INSERT INTO rollout_tallies (rollout_id, stage, agent_id, version)
SELECT * FROM unnest(%(rollout_ids)s::uuid[], %(stages)s::int[], %(agent_ids)s::int[], %(versions)s::text[])
ORDER BY 1, 2, 3, 4
ON CONFLICT DO NOTHING;

-- name: lock
SELECT t.rollout_id, t.stage, t.agent_id, t.version, t.items, t.failed, t.run_us, t.labels
FROM unnest(%(rollout_ids)s::uuid[], %(stages)s::int[], %(agent_ids)s::int[], %(versions)s::text[])
    AS k (rollout_id, stage, agent_id, version)
JOIN rollout_tallies t USING (rollout_id, stage, agent_id, version)
ORDER BY 1, 2, 3, 4
FOR UPDATE OF t;

-- name: put
UPDATE rollout_tallies
SET items = %(items)s, failed = %(failed)s, run_us = %(run_us)s::bigint[], labels = %(labels)s::jsonb
WHERE rollout_id = %(rollout_id)s AND stage = %(stage)s AND agent_id = %(agent_id)s AND version = %(version)s;

-- name: sides
-- At some agents, what the new version did in a stage, and the others at those of them in all stages and
-- before. By place: an agent that began anew goes on with what it had. Added up here: of a large fleet that is
-- much to send.
WITH counted AS MATERIALIZED (
    SELECT t.version = %(version)s AS is_new, t.stage, a.site, a.name, t.items, t.failed, t.run_us, t.labels
    FROM rollout_tallies t JOIN agents a USING (agent_id)
    WHERE t.rollout_id = %(rollout_id)s AND (t.version <> %(version)s OR t.stage = %(stage)s)
        AND (a.site, a.name) IN (SELECT * FROM unnest(%(sites)s::text[], %(names)s::text[]))
),
sides AS MATERIALIZED (
    SELECT * FROM counted
    WHERE is_new OR (site, name) IN (SELECT site, name FROM counted WHERE is_new AND items > 0)
),
runs AS (
    SELECT is_new, place, sum(n)::bigint AS n
    FROM sides, unnest(run_us) WITH ORDINALITY AS r (n, place)
    GROUP BY is_new, place
),
said AS (
    SELECT is_new, label, sum(n::bigint)::bigint AS n
    FROM sides, jsonb_each_text(labels) AS l (label, n)
    GROUP BY is_new, label
)
SELECT
    is_new, sum(items)::bigint, sum(failed)::bigint,
    (SELECT array_agg(n ORDER BY place) FROM runs r WHERE r.is_new = s.is_new),
    (SELECT jsonb_object_agg(label, n ORDER BY n DESC) FROM said l WHERE l.is_new = s.is_new)
FROM sides s
GROUP BY is_new;

-- name: results
-- Of the new version in all stages, by place.
SELECT a.site, a.name, sum(t.items)::bigint
FROM rollout_tallies t JOIN agents a USING (agent_id)
WHERE t.rollout_id = %(rollout_id)s AND t.version = %(version)s
GROUP BY a.site, a.name;

-- name: clear
DELETE FROM rollout_tallies t USING rollouts r
WHERE r.rollout_id = t.rollout_id AND r.ended_at IS NOT NULL;

-- name: before
-- The newest results of some versions, looked for among the newest of all.
SELECT agent_id, model, version, outcome, label, run_us
FROM (
    SELECT agent_id, model, version, outcome, label, run_us FROM results
    WHERE task_id >= %(since)s
    ORDER BY task_id DESC, item DESC
    LIMIT %(looked_through)s
) AS latest
WHERE model = %(model)s AND version = ANY (%(versions)s::text[])
LIMIT %(rows)s;
