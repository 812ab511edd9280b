-- User properties of tasks for which a version is chosen by them. Beside the tasks and not in them, so that
-- tasks without any write nothing more.
CREATE TABLE tags (
    task_id BLOB PRIMARY KEY,
    tags TEXT NOT NULL -- JSON: an object of texts
) STRICT, WITHOUT ROWID;
