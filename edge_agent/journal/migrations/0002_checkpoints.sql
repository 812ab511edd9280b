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
