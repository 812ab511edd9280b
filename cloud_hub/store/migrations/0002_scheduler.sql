-- Version 2: the central scheduler. Classes and depths of queued tasks, queues with weights and limits,
-- the reasons of decisions, a leader that is seen, hubs that share the work.

-- Queues -------------------------------------------------------------------------------------------

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

-- Classes ------------------------------------------------------------------------------------------

CREATE TABLE classes (
    class_id     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    origin_agent integer NOT NULL DEFAULT 0,
    model        text NOT NULL,
    version      text NOT NULL DEFAULT '',
    queue        text NOT NULL,
    selector     text NOT NULL DEFAULT '',
    UNIQUE (model, version, queue, selector, origin_agent)
);

INSERT INTO classes (model, version, queue, origin_agent)
SELECT DISTINCT model, coalesce(version, ''), queue, coalesce(origin_agent, 0) FROM tasks;

DROP INDEX tasks_queued;
ALTER TABLE tasks DROP COLUMN tag, ADD COLUMN class_id integer, ADD COLUMN preempted_at timestamptz;
UPDATE tasks t SET class_id = c.class_id
FROM classes c
WHERE (c.model, c.version, c.queue, c.selector, c.origin_agent)
    = (t.model, coalesce(t.version, ''), t.queue, '', coalesce(t.origin_agent, 0));
ALTER TABLE tasks
    ADD CONSTRAINT tasks_class CHECK (class_id IS NOT NULL OR state IN ('COMPLETED', 'TERMINATED')),
    DROP CONSTRAINT tasks_reason,
    ADD CONSTRAINT tasks_reason CHECK (
        CASE state
            WHEN 'TERMINATED' THEN
                coalesce(reason, '') IN ('cancelled', 'expired', 'exhausted', 'not_retriable', 'shed')
            ELSE reason IS NULL
        END
    );

CREATE INDEX tasks_queued ON tasks (class_id, priority DESC, task_id)
    WHERE state = 'QUEUED' AND not_before IS NULL;

-- Depths -------------------------------------------------------------------------------------------

CREATE TABLE depths (
    queued   bigint NOT NULL,
    class_id integer NOT NULL,
    priority smallint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

INSERT INTO depths (class_id, priority, queued)
SELECT class_id, priority, count(*) FROM tasks
WHERE state = 'QUEUED' AND not_before IS NULL
GROUP BY class_id, priority;

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

-- Leases and attempts say why ----------------------------------------------------------------------

ALTER TABLE leases ADD COLUMN priority smallint NOT NULL DEFAULT 0, ADD COLUMN why text;
ALTER TABLE attempts ADD COLUMN why text;

-- Leadership, and the hubs -------------------------------------------------------------------------

ALTER TABLE leadership
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN holder text NOT NULL DEFAULT '',
    ADD COLUMN fair text NOT NULL DEFAULT '';

CREATE TABLE hubs (
    hub_id     text PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
