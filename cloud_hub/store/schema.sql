-- The whole schema, for reading. The database is built by migrations/, and a test proves that all of
-- them together make exactly this.

-- Agents -------------------------------------------------------------------------------------------

-- One row an epoch of an agent; the current one of a place is the one with the highest agent_id.
CREATE TABLE agents (
    agent_id   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    site       text NOT NULL,
    name       text NOT NULL,
    epoch      bigint NOT NULL,
    online     boolean NOT NULL DEFAULT false,
    draining   boolean NOT NULL DEFAULT false,
    software   text NOT NULL DEFAULT '',
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen  timestamptz NOT NULL DEFAULT now(),
    telemetry  jsonb,
    UNIQUE (site, name, epoch)
) WITH (fillfactor = 50);

-- Tasks --------------------------------------------------------------------------------------------

-- The states that a task can be seen in: SUBMITTED and FAILED are passed through within a transaction,
-- and a REJECTED job never gets here.
CREATE TABLE tasks (
    task_id         uuid PRIMARY KEY,
    observed_at     timestamptz NOT NULL,
    submitted_at    timestamptz NOT NULL DEFAULT now(),
    finished_at     timestamptz,
    deadline_at     timestamptz,
    not_before      timestamptz,          -- QUEUED, but waiting after a failed attempt
    preempted_at    timestamptz,          -- asked to make room, the last time
    timeout_ms      bigint,
    items           integer NOT NULL,
    items_done      integer NOT NULL DEFAULT 0,
    payload_bytes   integer NOT NULL,
    origin_agent    integer REFERENCES agents,
    class_id        integer,
    priority        smallint NOT NULL,
    attempt         smallint NOT NULL DEFAULT 0,  -- the fencing token: grows with each grant, for ever
    failures        smallint NOT NULL DEFAULT 0,  -- attempts that failed or were lost
    max_attempts    smallint NOT NULL,
    state           text NOT NULL DEFAULT 'QUEUED',
    reason          text,
    model           text NOT NULL,
    queue           text NOT NULL,
    content_type    text NOT NULL,
    version         text,
    device          text,
    error           text,
    traceparent     text,
    idempotency_key text,
    client_id       text,
    response_topic  text,
    correlation     bytea,
    CONSTRAINT tasks_state CHECK (state IN ('QUEUED', 'PROCESSING', 'COMPLETED', 'TERMINATED')),
    CONSTRAINT tasks_reason CHECK (
        CASE state
            WHEN 'TERMINATED' THEN
                coalesce(reason, '') IN ('cancelled', 'expired', 'exhausted', 'not_retriable', 'shed')
            ELSE reason IS NULL
        END
    ),
    CONSTRAINT tasks_class CHECK (class_id IS NOT NULL OR state IN ('COMPLETED', 'TERMINATED')),
    CONSTRAINT tasks_finished CHECK ((finished_at IS NOT NULL) = (state IN ('COMPLETED', 'TERMINATED'))),
    CONSTRAINT tasks_backoff CHECK (not_before IS NULL OR state = 'QUEUED'),
    CONSTRAINT tasks_attempt CHECK (attempt >= CASE state WHEN 'PROCESSING' THEN 1 ELSE 0 END),
    CONSTRAINT tasks_failures CHECK (failures >= 0 AND (failures < max_attempts OR state = 'TERMINATED')),
    CONSTRAINT tasks_items CHECK (items >= 1 AND items_done BETWEEN 0 AND items),
    CONSTRAINT tasks_completed CHECK (state <> 'COMPLETED' OR items_done = items),
    CONSTRAINT tasks_priority CHECK (priority BETWEEN 0 AND 9)
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_analyze_scale_factor = 0.05
);

-- The scheduler's: the next task of a class and priority is the first entry there, at any depth.
CREATE INDEX tasks_queued ON tasks (class_id, priority DESC, task_id)
    WHERE state = 'QUEUED' AND not_before IS NULL;

CREATE INDEX tasks_backing_off ON tasks (not_before)
    WHERE state = 'QUEUED' AND not_before IS NOT NULL;

CREATE INDEX tasks_due ON tasks (deadline_at)
    WHERE state = 'QUEUED' AND deadline_at IS NOT NULL;

-- Lists and counts of everything but the many that went well.
CREATE INDEX tasks_open ON tasks (state, task_id)
    WHERE state <> 'COMPLETED';

-- Queues -------------------------------------------------------------------------------------------

-- A queue that has no row here has weight 1 and no limits.
CREATE TABLE queues (
    name             text PRIMARY KEY,
    weight           double precision NOT NULL DEFAULT 1,
    max_running      integer,
    max_queued       bigint,
    max_per_second   double precision,
    default_priority smallint,
    when_full        text NOT NULL DEFAULT 'reject',
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT queues_weight CHECK (weight > 0 AND weight < 'infinity'),
    CONSTRAINT queues_limits CHECK (max_running >= 0 AND max_queued >= 0 AND max_per_second > 0),
    CONSTRAINT queues_priority CHECK (default_priority BETWEEN 0 AND 9),
    CONSTRAINT queues_when_full CHECK (when_full IN ('reject', 'drop_lowest'))
);

-- Queued tasks that are alike in where they may go, and to whom their share is charged. Never deleted.
CREATE TABLE classes (
    class_id     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin_agent integer NOT NULL DEFAULT 0,  -- 0: submitted to the hub
    model        text NOT NULL,
    version      text NOT NULL DEFAULT '',  -- '': any
    queue        text NOT NULL,
    selector     text NOT NULL DEFAULT '',
    UNIQUE (model, version, queue, selector, origin_agent)
);

-- How many tasks of a class and priority wait: the sum of its rows, one for each statement that changed it,
-- which the leader adds up from time to time. So nobody waits for a counter, and no depth is ever counted.
CREATE TABLE depths (
    queued   bigint NOT NULL,
    class_id integer NOT NULL,
    priority smallint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

CREATE FUNCTION count_added() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO depths (class_id, priority, queued)
    SELECT class_id, priority, count(*) FROM added
    WHERE state = 'QUEUED' AND not_before IS NULL
    GROUP BY class_id, priority;
    RETURN NULL;
END
$$;

CREATE FUNCTION count_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO depths (class_id, priority, queued)
    SELECT class_id, priority, sum(n)
    FROM (
        SELECT class_id, priority, 1 AS n FROM added WHERE state = 'QUEUED' AND not_before IS NULL
        UNION ALL
        SELECT class_id, priority, -1 FROM removed WHERE state = 'QUEUED' AND not_before IS NULL
    ) AS changes
    GROUP BY class_id, priority
    HAVING sum(n) <> 0;
    RETURN NULL;
END
$$;

CREATE FUNCTION count_removed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO depths (class_id, priority, queued)
    SELECT class_id, priority, -count(*) FROM removed
    WHERE state = 'QUEUED' AND not_before IS NULL
    GROUP BY class_id, priority;
    RETURN NULL;
END
$$;

CREATE TRIGGER depths_added AFTER INSERT ON tasks
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_added();
CREATE TRIGGER depths_changed AFTER UPDATE ON tasks
    REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_changed();
CREATE TRIGGER depths_removed AFTER DELETE ON tasks
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION count_removed();

-- Payloads, leases, attempts ------------------------------------------------------------------------

-- Apart from its task, so that a change of state never copies it. Images are compressed already; a
-- small payload stays in its row. No foreign key: written and deleted with its task in one transaction.
CREATE TABLE payloads (
    task_id uuid PRIMARY KEY,
    body    bytea NOT NULL
) WITH (toast_tuple_target = 4080);
ALTER TABLE payloads ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE idempotency_keys (
    key     text PRIMARY KEY,
    task_id uuid NOT NULL
);

-- A row for each task that is PROCESSING. So few that the expired ones are found by looking through:
-- without an index on expires_at a renewal touches one page and no index.
CREATE TABLE leases (
    task_id    uuid PRIMARY KEY,
    granted_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    progress   bigint,
    agent_id   integer NOT NULL,  -- its lane of leases, written with it, proves that the agent is there
    attempt    smallint NOT NULL CHECK (attempt >= 1),
    priority   smallint NOT NULL DEFAULT 0,  -- the effective one, when it was granted
    why        text  -- JSON: what the decision weighed
) WITH (fillfactor = 50);

CREATE INDEX leases_agent ON leases (agent_id);

-- How attempts ended, by the word of their agents; of a lost one, by the hub's until that word comes.
-- Attempt 0 is the origin's own, of a task that it took back. QUEUED: put back or lost.
CREATE TABLE attempts (
    task_id    uuid NOT NULL,
    granted_at timestamptz,
    ended_at   timestamptz NOT NULL DEFAULT now(),
    run_us     bigint,
    agent_id   integer NOT NULL,
    items_done integer NOT NULL,
    attempt    smallint NOT NULL,
    state      text NOT NULL,
    reason     text,
    error      text,
    why        text,
    PRIMARY KEY (task_id, attempt),
    CONSTRAINT attempts_state CHECK (state IN ('COMPLETED', 'FAILED', 'TERMINATED', 'QUEUED'))
);

-- Results ------------------------------------------------------------------------------------------

-- One row an item; the first that is committed wins. Partitioned by the time in the task ids (UUIDv7),
-- so that a month is dropped whole and (task_id, item) is unique across all of them. Months are made
-- ahead by the hub; `results_early` is for devices whose clock was never set.
CREATE TABLE results (
    task_id         uuid NOT NULL,
    observed_at     timestamptz NOT NULL,
    received_at     timestamptz NOT NULL DEFAULT now(),
    clock_offset_us bigint,
    clock_error_us  bigint,
    wait_us         bigint,
    run_us          bigint,
    item            integer NOT NULL,
    agent_id        integer NOT NULL,
    score           real,
    attempt         smallint NOT NULL,
    outcome         text NOT NULL,
    model           text NOT NULL,
    version         text NOT NULL,
    device          text,
    label           text,
    output          text,
    error           text,
    PRIMARY KEY (task_id, item),
    CONSTRAINT results_outcome CHECK (outcome IN ('ok', 'failed', 'expired', 'cancelled'))
) PARTITION BY RANGE (task_id);

CREATE TABLE results_early PARTITION OF results
    FOR VALUES FROM (MINVALUE) TO ('016f5e66-e800-0000-0000-000000000000');  -- 2020-01-01
CREATE TABLE results_default PARTITION OF results DEFAULT;

-- Rows whose (task_id, item) had a result already, or whose run was asked for again.
CREATE TABLE shadows (
    task_id     uuid NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    item        integer NOT NULL,
    agent_id    integer NOT NULL,
    score       real,
    attempt     smallint NOT NULL,
    agrees      boolean,  -- with the recorded row, on outcome and label; null: it gave way to a new run
    outcome     text NOT NULL,
    label       text
);

CREATE INDEX shadows_task ON shadows (task_id, item);

-- Lanes --------------------------------------------------------------------------------------------

CREATE TABLE up_lanes (
    agent_id  integer NOT NULL REFERENCES agents,
    lane      text NOT NULL,
    cursor    bigint NOT NULL DEFAULT 0,  -- passed
    committed bigint NOT NULL DEFAULT 0,  -- and really committed
    numbered  bigint NOT NULL DEFAULT 0,  -- given out by the agent, as far as it said
    PRIMARY KEY (agent_id, lane),
    CONSTRAINT up_lanes_order CHECK (0 <= committed AND committed <= cursor AND cursor <= numbered)
) WITH (fillfactor = 50);

CREATE TABLE down_lanes (
    agent_id integer NOT NULL REFERENCES agents,
    lane     text NOT NULL,
    numbered bigint NOT NULL DEFAULT 0,
    acked    bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (agent_id, lane),
    CONSTRAINT down_lanes_order CHECK (0 <= acked AND acked <= numbered)
) WITH (fillfactor = 50);

-- Chunks that wait to be sent down and acknowledged. Leases and results are composed when they are sent.
CREATE TABLE outgoing (
    agent_id integer NOT NULL,
    lane     text NOT NULL,
    first    bigint NOT NULL,
    last     bigint NOT NULL,
    kind     text NOT NULL,
    task_id  uuid,
    attempt  smallint,
    body     jsonb,
    PRIMARY KEY (agent_id, lane, first),
    CONSTRAINT outgoing_span CHECK (1 <= first AND first <= last)
);

-- Batches that could not be applied, whole and with the reason.
CREATE TABLE quarantine (
    quarantine_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    agent_id      integer NOT NULL,
    lane          text NOT NULL,
    header        jsonb,
    payload       bytea NOT NULL,
    error         text NOT NULL,
    received_at   timestamptz NOT NULL DEFAULT now()
);

-- Leadership ---------------------------------------------------------------------------------------

-- One row: the token of the scheduler that took the lead last.
CREATE TABLE leadership (
    one     boolean PRIMARY KEY DEFAULT true CHECK (one),
    token   bigint NOT NULL,
    since   timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now(),
    holder  text NOT NULL DEFAULT '',
    fair    text NOT NULL DEFAULT ''  -- JSON: the clocks of the fair shares
);
INSERT INTO leadership (token) VALUES (0);

-- The hubs that are alive: they divide the agents among them.
CREATE TABLE hubs (
    hub_id     text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Models -------------------------------------------------------------------------------------------

-- Contents by their SHA-256, in pieces. One that is still coming has none yet; one that is going is being
-- taken away, piece by piece, and nobody may lay hands on it again.
CREATE TABLE blobs (
    blob_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sha256    text UNIQUE,
    size      bigint,
    stored_at timestamptz NOT NULL DEFAULT now(),  -- its latest piece
    state     text NOT NULL DEFAULT 'coming',
    CONSTRAINT blobs_state CHECK (state IN ('coming', 'complete', 'going')),
    CONSTRAINT blobs_complete CHECK (
        CASE state
            WHEN 'complete' THEN coalesce(sha256, '') ~ '^[0-9a-f]{64}$' AND coalesce(size, -1) >= 0
            ELSE sha256 IS NULL AND size IS NULL
        END
    )
) WITH (fillfactor = 50);

-- All but the last are of 1 MiB, so that an offset says which one it is in. PostgreSQL is not to try and
-- compress them: weights hardly can be.
CREATE TABLE blob_chunks (
    blob_id bigint NOT NULL REFERENCES blobs,
    number  integer NOT NULL,
    body    bytea NOT NULL,
    PRIMARY KEY (blob_id, number),
    CONSTRAINT blob_chunks_size CHECK (length(body) BETWEEN 1 AND 1048576)
);
ALTER TABLE blob_chunks ALTER COLUMN body SET STORAGE EXTERNAL;

-- A version's content never changes; who vouches for it may.
CREATE TABLE models (
    name      text NOT NULL,
    version   text NOT NULL,
    sha256    text NOT NULL REFERENCES blobs (sha256),
    manifest  text NOT NULL,
    key       text,
    signature text,
    pushed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (name, version),
    CONSTRAINT models_signed CHECK ((key IS NULL) = (signature IS NULL))
);

CREATE INDEX models_blob ON models (sha256);

-- Which version of a model the agents with these labels are to serve.
CREATE TABLE targets (
    model      text NOT NULL,
    selector   text NOT NULL DEFAULT '',
    version    text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, selector),
    FOREIGN KEY (model, version) REFERENCES models (name, version)
);

-- Rollouts -----------------------------------------------------------------------------------------

-- The staged change of a model's version for the agents that a selector fits. What it takes them to must
-- not be removed while it does (`held`); what it takes them from is held by their targets.
CREATE TABLE rollouts (
    rollout_id  uuid PRIMARY KEY,
    model       text NOT NULL,
    version     text NOT NULL,
    selector    text NOT NULL DEFAULT '',
    stages      jsonb NOT NULL,  -- texts, as shared/rollouts/stages.py reads them
    gates       jsonb NOT NULL,  -- texts, as shared/rollouts/gates.py reads them
    min_results integer NOT NULL,
    soak_s      double precision NOT NULL,
    patience_s  double precision,
    on_fail     text NOT NULL,
    state       text NOT NULL DEFAULT 'running',
    stage       integer NOT NULL DEFAULT 0,
    stage_since timestamptz NOT NULL DEFAULT now(),
    started_at  timestamptz NOT NULL DEFAULT now(),
    ended_at    timestamptz,
    reason      text NOT NULL DEFAULT '',  -- of the last step
    compared    jsonb NOT NULL DEFAULT '{}',  -- [compared, agreed] by agent, when the stage began
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

-- Every step of a rollout, numbered from 1, with what was seen of its stage then.
CREATE TABLE rollout_events (
    rollout_id uuid NOT NULL REFERENCES rollouts,
    number     integer NOT NULL,
    at         timestamptz NOT NULL DEFAULT now(),
    stage      integer NOT NULL,  -- the one that the rollout was in before
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

-- What the two versions of a rollout did on each agent while a stage lasted; stage -1: before it began.
-- Counted in the transactions that record the results, and so exactly once.
CREATE TABLE rollout_tallies (
    rollout_id uuid NOT NULL REFERENCES rollouts,
    stage      integer NOT NULL,
    agent_id   integer NOT NULL,
    version    text NOT NULL,
    items      bigint NOT NULL DEFAULT 0,
    failed     bigint NOT NULL DEFAULT 0,
    run_us     bigint[] NOT NULL DEFAULT '{}',  -- a histogram: shared/rollouts/measures.py has its bounds
    labels     jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (rollout_id, stage, agent_id, version),
    CONSTRAINT rollout_tallies_stage CHECK (stage >= -1),
    CONSTRAINT rollout_tallies_items CHECK (failed >= 0 AND failed <= items)
) WITH (fillfactor = 50);
