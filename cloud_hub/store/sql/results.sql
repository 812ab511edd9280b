-- name: select
-- In the order of results.SCHEMA.
SELECT
    r.task_id, r.item, r.attempt, r.device, r.model, r.version, r.outcome, r.label, r.score, r.output, r.error,
    r.observed_at, r.clock_offset_us, r.clock_error_us, r.wait_us, r.run_us,
    coalesce(a.site, '') AS site, coalesce(a.name, '') AS agent, r.received_at
FROM results r
LEFT JOIN agents a ON a.agent_id = r.agent_id

-- name: patience
-- Who looks for few rows among many may do so for longer than others.
SET LOCAL statement_timeout = '10min';
