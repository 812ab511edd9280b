-- Which stream a task belongs to, where its job named one. Beside the tasks and not in them: an added column
-- would lie behind the payload, and whoever reads it would have to pass that.
CREATE TABLE streams (
    task_id BLOB PRIMARY KEY,
    stream TEXT NOT NULL
) STRICT, WITHOUT ROWID;
