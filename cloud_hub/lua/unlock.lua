-- Give up a lock if it is still ours; 1 if it was.
--
--   KEYS[1]  the lock; holds the name of whoever has it
--   ARGV[1]  our name
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('DEL', KEYS[1])
end
return 0
