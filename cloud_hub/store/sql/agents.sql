-- name: seen
-- A sign of life of an epoch; is_new at its first. A place's drain goes on to its next epoch.
INSERT INTO agents AS a (site, name, epoch, online, software, draining)
VALUES (
    %(site)s, %(name)s, %(epoch)s, %(online)s, %(software)s,
    coalesce((
        SELECT b.draining FROM agents b WHERE b.site = %(site)s AND b.name = %(name)s
        ORDER BY b.agent_id DESC LIMIT 1
    ), false)
)
ON CONFLICT (site, name, epoch) DO UPDATE SET
    online = excluded.online,
    software = CASE excluded.software WHEN '' THEN a.software ELSE excluded.software END,
    last_seen = now()
RETURNING agent_id, xmax = 0 AS is_new;

-- name: epochs
-- All epochs of a place, the oldest first.
SELECT agent_id FROM agents WHERE site = %(site)s AND name = %(name)s ORDER BY agent_id;

-- name: retire
UPDATE agents SET online = false WHERE agent_id = ANY (%(agent_ids)s::int[]) AND online;

-- name: leased
-- Tasks whose leases these agents hold.
SELECT task_id FROM leases WHERE agent_id = ANY (%(agent_ids)s::int[]) ORDER BY task_id;

-- name: succeed
-- Words to the older epochs that are just being written are waited for, and those that are about to be
-- will find the new epoch: see outgoing.sql, hold_places.
SELECT pg_advisory_xact_lock(%(class)s, hashtext(%(site)s::text || '/' || %(name)s::text));

-- name: take_undelivered
-- What still waits for these agents, taken off their lanes, in its order.
WITH taken AS (DELETE FROM outgoing WHERE agent_id = ANY (%(agent_ids)s::int[]) RETURNING *)
SELECT lane, last - first + 1 AS size, kind, task_id, attempt, body::text
FROM taken ORDER BY agent_id, lane, first;

-- name: set_presence
UPDATE agents
SET online = %(online)s, last_seen = now(),
    software = CASE %(software)s::text WHEN '' THEN software ELSE %(software)s END
WHERE agent_id = %(agent_id)s;

-- name: save_telemetry
UPDATE agents a SET telemetry = r.telemetry, last_seen = now()
FROM unnest(%(agent_ids)s::int[], %(telemetry)s::jsonb[]) AS r (agent_id, telemetry)
WHERE a.agent_id = r.agent_id;

-- name: fleet
-- The current epoch of each place, or of one.
SELECT DISTINCT ON (site, name)
    agent_id, site, name, epoch, online, draining, software, first_seen, last_seen, telemetry::text
FROM agents
WHERE %(site)s::text IS NULL OR (site = %(site)s AND name = %(name)s)
ORDER BY site, name, agent_id DESC;

-- name: set_draining
UPDATE agents SET draining = %(draining)s WHERE site = %(site)s AND name = %(name)s;

-- name: draining
SELECT agent_id FROM agents WHERE draining;
