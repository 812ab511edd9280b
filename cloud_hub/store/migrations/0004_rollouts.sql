-- Version 4: rollouts, what was done with each of them, and what their versions do meanwhile.

CREATE TABLE rollouts (
    rollout_id  uuid PRIMARY KEY,
    model       text NOT NULL,
    version     text NOT NULL,
    selector    text NOT NULL DEFAULT '',
    stages      jsonb NOT NULL,
    gates       jsonb NOT NULL,
    min_results integer NOT NULL,
    soak_s      double precision NOT NULL,
    patience_s  double precision,
    on_fail     text NOT NULL,
    state       text NOT NULL DEFAULT 'running',
    stage       integer NOT NULL DEFAULT 0,
    stage_since timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    reason      text NOT NULL DEFAULT '',
    compared    jsonb NOT NULL DEFAULT '{}',
    held        text GENERATED ALWAYS AS (CASE WHEN ended_at IS NULL THEN version END) STORED,
    FOREIGN KEY (model, held) REFERENCES models (name, version),
    CONSTRAINT rollouts_state CHECK (state IN ('running', 'paused', 'completed', 'rolled_back')),
    CONSTRAINT rollouts_ended CHECK ((ended_at IS NOT NULL) = (state IN ('completed', 'rolled_back'))),
    CONSTRAINT rollouts_stages CHECK (jsonb_typeof(stages) = 'array' AND jsonb_typeof(gates) = 'array'),
    CONSTRAINT rollouts_stage CHECK (stage >= 0 AND stage < jsonb_array_length(stages)),
    CONSTRAINT rollouts_numbers CHECK (min_results >= 1 AND soak_s >= 0 AND patience_s > 0),
    CONSTRAINT rollouts_on_fail CHECK (on_fail IN ('roll_back', 'pause'))
) WITH (fillfactor = 50);

CREATE UNIQUE INDEX rollouts_active ON rollouts (model) WHERE ended_at IS NULL;
CREATE INDEX rollouts_held ON rollouts (model, held) WHERE held IS NOT NULL;

CREATE TABLE rollout_events (
    rollout_id uuid NOT NULL REFERENCES rollouts,
    number     integer NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    stage      integer NOT NULL,
    kind       text NOT NULL,
    by         text NOT NULL,
    reason     text NOT NULL DEFAULT '',
    evidence   jsonb,
    PRIMARY KEY (rollout_id, number),
    CONSTRAINT rollout_events_kind CHECK (
        kind IN ('started', 'promoted', 'paused', 'resumed', 'completed', 'rolled_back')
    ),
    CONSTRAINT rollout_events_by CHECK (by IN ('policy', 'operator'))
);

CREATE TABLE rollout_tallies (
    rollout_id uuid NOT NULL REFERENCES rollouts,
    stage      integer NOT NULL,
    agent_id   integer NOT NULL,
    version    text NOT NULL,
    items      bigint NOT NULL DEFAULT 0,
    failed     bigint NOT NULL DEFAULT 0,
    run_us     bigint[] NOT NULL DEFAULT '{}',
    labels     jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (rollout_id, stage, agent_id, version),
    CONSTRAINT rollout_tallies_stage CHECK (stage >= -1),
    CONSTRAINT rollout_tallies_items CHECK (failed >= 0 AND failed <= items)
) WITH (fillfactor = 50);
