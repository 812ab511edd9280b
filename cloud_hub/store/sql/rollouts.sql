-- name: hold
-- Who starts a rollout of a model, or changes its targets, does so alone until the commit.
SELECT pg_advisory_xact_lock(%(class)s, hashtext(%(model)s::text));

-- name: start
INSERT INTO rollouts (
    rollout_id, model, version, selector, stages, gates, min_results, soak_s, patience_s, on_fail
)
VALUES (
    %(rollout_id)s, %(model)s, %(version)s, %(selector)s, %(stages)s::jsonb, %(gates)s::jsonb, %(min_results)s,
    %(soak_s)s, %(patience_s)s, %(on_fail)s
);

-- name: list
-- Of a model, in a state, or the one; the active ones first, then those that ended last.
SELECT
    rollout_id, model, version, selector, stages, gates, min_results, soak_s, patience_s, on_fail, state, stage,
    stage_since, started_at, ended_at, reason, compared
FROM rollouts
WHERE (%(rollout_id)s::uuid IS NULL OR rollout_id = %(rollout_id)s)
    AND (%(model)s::text IS NULL OR model = %(model)s) AND (%(state)s::text IS NULL OR state = %(state)s)
ORDER BY ended_at DESC NULLS FIRST, rollout_id DESC
LIMIT %(limit)s;

-- name: active
-- Asked for again and again: read off the index that holds no others, and what is large only if it is wanted.
SELECT
    rollout_id, model, version, selector, stages, gates, min_results, soak_s, patience_s, on_fail, state, stage,
    stage_since, started_at, ended_at, reason, CASE WHEN %(whole)s THEN compared ELSE '{}' END
FROM rollouts
WHERE ended_at IS NULL
ORDER BY model;

-- name: now
SELECT now();

-- name: counts
SELECT state, count(*) FROM rollouts GROUP BY state;

-- name: change
-- Only from the state and the stage that whoever decided has seen; with the step as an event.
WITH changed AS (
    UPDATE rollouts SET
        state = %(state)s, stage = %(stage)s, reason = %(reason)s,
        stage_since = CASE WHEN %(anew)s THEN now() ELSE stage_since END,
        ended_at = CASE WHEN %(ends)s THEN now() END,
        compared = coalesce(%(compared)s::jsonb, compared)
    WHERE rollout_id = %(rollout_id)s AND state = %(from_state)s AND stage = %(from_stage)s
    RETURNING rollout_id
)
INSERT INTO rollout_events (rollout_id, number, stage, kind, by, reason, evidence)
SELECT
    rollout_id, (SELECT coalesce(max(number), 0) + 1 FROM rollout_events WHERE rollout_id = %(rollout_id)s),
    %(from_stage)s, %(kind)s, %(by)s, %(reason)s, %(evidence)s::jsonb
FROM changed;

-- name: begin_history
INSERT INTO rollout_events (rollout_id, number, stage, kind, by, reason)
VALUES (%(rollout_id)s, 1, 0, 'started', 'operator', %(reason)s);

-- name: moves
-- Whether a rollout is under way that will write this target.
SELECT EXISTS (
    SELECT FROM rollouts WHERE model = %(model)s AND selector = %(selector)s AND ended_at IS NULL
);

-- name: events
SELECT rollout_id, number, at, stage, kind, by, reason, evidence::text FROM rollout_events
WHERE rollout_id = ANY (%(rollout_ids)s::uuid[])
ORDER BY rollout_id, number;
