-- name: take
UPDATE leadership SET token = token + 1, since = now(), seen_at = now(), holder = %(holder)s
RETURNING token, fair;

-- name: vacant
-- Nobody has led for so long, or who did is us.
SELECT holder = %(holder)s OR seen_at < now() - make_interval(secs => %(silent_s)s) FROM leadership;

-- name: hold
-- A leader that stops in the middle, with its process, must not hold up its successor: hence the limit.
UPDATE leadership SET seen_at = now() WHERE token = %(token)s
RETURNING set_config('idle_in_transaction_session_timeout', %(pause)s, true);

-- name: leave
-- Whoever comes next need not wait until we count as silent.
UPDATE leadership SET seen_at = '-infinity' WHERE token = %(token)s;

-- name: leader
SELECT token, holder, since, seen_at FROM leadership;
