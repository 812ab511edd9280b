-- The journal's schema: what all migrations together amount to, which a test proves.
-- It is here to be read; a journal is made and brought up to date by the migrations alone.

-- Whose journal this is. The epoch is a random number that says "these lanes are numbered from 1 anew".
CREATE TABLE meta (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    site TEXT NOT NULL,
    name TEXT NOT NULL
) STRICT;

-- Tasks that this agent answers for and has not finished.
CREATE TABLE tasks (
    seq INTEGER PRIMARY KEY,
    task_id BLOB NOT NULL UNIQUE CHECK (length(task_id) = 16),
    origin TEXT NOT NULL CHECK (origin IN ('device', 'hub')),
    holder TEXT NOT NULL CHECK (holder IN ('edge', 'hub')),
    hub_attempt INTEGER CHECK (hub_attempt >= 0),
    model TEXT NOT NULL,
    version TEXT,
    rank INTEGER NOT NULL CHECK (rank BETWEEN -9 AND 0), -- the priority, negated: see tasks_in_order
    queue TEXT NOT NULL,
    tag REAL NOT NULL,
    device TEXT,
    content_type TEXT NOT NULL,
    items INTEGER NOT NULL CHECK (items >= 1),
    items_done INTEGER NOT NULL CHECK (items_done BETWEEN 0 AND items),
    attempt INTEGER NOT NULL CHECK (attempt >= 0),
    max_attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL CHECK (crashes >= 0),
    timeout_ms INTEGER,
    deadline_ms INTEGER,
    accepted_us INTEGER NOT NULL,
    response_topic TEXT,
    correlation BLOB,
    client_id TEXT,
    mqtt_version INTEGER,
    traceparent TEXT,
    idempotency_key TEXT,
    payload BLOB NOT NULL, -- last, so that no other column lies behind its overflow pages
    CHECK (origin = 'device' OR hub_attempt IS NOT NULL),
    CHECK (origin = 'device' OR holder = 'edge')
) STRICT;

-- What runs next, ascending in all three, and what the backlog amounts to: from the index alone.
CREATE INDEX tasks_in_order ON tasks (holder, rank, tag, seq, model, items);

CREATE UNIQUE INDEX tasks_by_key ON tasks (idempotency_key) WHERE idempotency_key IS NOT NULL;

-- How many items of a task are done, for tasks of which some are: those are not run again. Beside the tasks
-- and not in them, for whoever changes a row of `tasks` writes its payload anew.
CREATE TABLE checkpoints (
    task_id BLOB PRIMARY KEY,
    items_done INTEGER NOT NULL CHECK (items_done >= 1)
) STRICT, WITHOUT ROWID;

-- What the reply to a device will say of its task's items that are done, a run of them in each row. Their
-- result rows cannot tell: those are deleted as soon as the hub has them.
CREATE TABLE parts (
    task_id BLOB NOT NULL,
    first INTEGER NOT NULL CHECK (first >= 0),
    failed INTEGER NOT NULL CHECK (failed >= 0), -- how many of these items failed
    error TEXT, -- why the first of those did
    items TEXT NOT NULL, -- JSON, without the brackets of the list
    PRIMARY KEY (task_id, first)
) STRICT;

-- User properties of tasks for which a version is chosen by them. Beside the tasks and not in them, so that
-- tasks without any write nothing more.
CREATE TABLE tags (
    task_id BLOB PRIMARY KEY,
    tags TEXT NOT NULL -- JSON: an object of texts
) STRICT, WITHOUT ROWID;

-- Which stream a task belongs to, where its job named one. Beside the tasks and not in them: an added column
-- would lie behind the payload, and whoever reads it would have to pass that.
CREATE TABLE streams (
    task_id BLOB PRIMARY KEY,
    stream TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Replies that the site's broker has not acknowledged. UUIDv7s: the oldest task's comes first.
CREATE TABLE replies (
    task_id BLOB PRIMARY KEY,
    topic TEXT NOT NULL,
    correlation BLOB,
    content_type TEXT NOT NULL,
    body BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- The idempotency keys of tasks that have ended, with their replies; the oldest are forgotten.
CREATE TABLE idempotency (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    task_id BLOB NOT NULL,
    topic TEXT, -- this and the next two are null for a task that ended without a reply
    content_type TEXT,
    body BLOB,
    bytes_so_far INTEGER NOT NULL -- of all replies up to this one
) STRICT;

-- The sender's side of each up lane. A record's place in `outgoing` is its number plus `shift`.
CREATE TABLE lanes (
    lane INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    generation INTEGER NOT NULL CHECK (generation >= 1),
    numbered INTEGER NOT NULL DEFAULT 0,
    acked INTEGER NOT NULL DEFAULT 0 CHECK (acked BETWEEN 0 AND numbered),
    shift INTEGER NOT NULL DEFAULT 0 CHECK (shift >= 0),
    UNIQUE (name, generation)
) STRICT;

-- Chunks of contiguous records that the hub has not acknowledged: packed ones with their body,
-- and handed-over tasks, one a chunk, by reference.
CREATE TABLE outgoing (
    lane INTEGER NOT NULL,
    first INTEGER NOT NULL CHECK (first >= 1),
    last INTEGER NOT NULL CHECK (last >= first),
    kind TEXT NOT NULL,
    task_id BLOB,
    schema_version INTEGER, -- of the records in the body
    body BLOB,
    PRIMARY KEY (lane, first),
    CHECK ((task_id IS NULL) <> (body IS NULL)),
    CHECK ((body IS NULL) = (schema_version IS NULL))
) STRICT;

-- The receiver's side of each down lane.
CREATE TABLE cursors (
    lane TEXT PRIMARY KEY,
    cursor INTEGER NOT NULL,
    committed INTEGER NOT NULL CHECK (committed BETWEEN 0 AND cursor)
) STRICT, WITHOUT ROWID;

-- The lanes that every agent has.
INSERT INTO lanes (name, generation) VALUES ('tasks', 1), ('results', 1);
