-- name: select
-- In the order of results.SCHEMA.
SELECT
    r.task_id, r.item, r.attempt, r.device, r.model, r.version, r.outcome, r.label, r.score, r.output, r.error,
    r.observed_at, r.clock_offset_us, r.clock_error_us, r.wait_us, r.run_us,
    coalesce(a.site, '') AS site, coalesce(a.name, '') AS agent, r.received_at
FROM results r
LEFT JOIN agents a ON a.agent_id = r.agent_id

-- name: patience
-- A reader may take its time between two batches, and one that looks for few rows among many over each.
SELECT
    set_config('idle_in_transaction_session_timeout', '10min', true),
    set_config('statement_timeout', '10min', true);
