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

-- name: read
-- By place: an agent that began anew goes on with what it had.
SELECT t.rollout_id, t.stage, a.site, a.name, t.version, t.items, t.failed, t.run_us, t.labels
FROM rollout_tallies t JOIN agents a USING (agent_id)
WHERE t.rollout_id = ANY (%(rollout_ids)s::uuid[]);

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
