-- Take a lock that is free, or prolong our own; 1 if it is ours now.
--
--   KEYS[1]  the lock; holds the name of whoever has it
--   ARGV[1]  our name
--   ARGV[2]  for how long it is ours from now on (ms)
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
