-- name: beat
-- A hub is there; the hubs that are alive, it included. One that went without a word is forgotten later
-- than it counts as gone, so that clocks and slow statements have no say in who writes here.
WITH here AS (
    INSERT INTO hubs (hub_id) VALUES (%(hub_id)s)
    ON CONFLICT (hub_id) DO UPDATE SET seen_at = now()
    RETURNING hub_id
),
forgotten AS (
    DELETE FROM hubs
    WHERE hub_id <> %(hub_id)s AND seen_at < now() - make_interval(secs => %(forget_s)s)
)
SELECT hub_id FROM here
UNION ALL
SELECT hub_id FROM hubs WHERE hub_id <> %(hub_id)s AND seen_at > now() - make_interval(secs => %(live_s)s);

-- name: succeed
-- Nobody else listens at the place of a hub that is just starting: what was there is gone, and so is what
-- it had begun, though PostgreSQL may not know yet.
WITH gone AS (
    DELETE FROM hubs WHERE starts_with(hub_id, %(place)s) AND hub_id <> %(hub_id)s RETURNING hub_id
),
ended AS (
    SELECT a.pid, pg_terminate_backend(a.pid) AS ended
    FROM gone g JOIN pg_stat_activity a
        ON a.application_name = 'backhaul/' || split_part(g.hub_id, '/', 2)
        AND a.usename = current_user AND a.datname = current_database()
)
SELECT hub_id, (SELECT count(*) FROM ended) FROM gone;

-- name: leave
DELETE FROM hubs WHERE hub_id = %(hub_id)s;

-- name: end_sessions
-- Only of hubs that went without a word, and are not back: who has left ends its sessions itself.
SELECT pg_terminate_backend(a.pid)
FROM unnest(%(hub_ids)s::text[], %(sessions)s::text[]) AS m (hub_id, session)
JOIN hubs h USING (hub_id)
JOIN pg_stat_activity a ON a.application_name = m.session
WHERE h.seen_at < now() - make_interval(secs => %(live_s)s)
    AND a.usename = current_user AND a.datname = current_database();

-- name: waiting
-- The down lanes of some agents that hold records, and how far they are numbered.
SELECT agent_id, lane, numbered FROM down_lanes
WHERE agent_id = ANY (%(agent_ids)s::int[]) AND numbered > acked;
