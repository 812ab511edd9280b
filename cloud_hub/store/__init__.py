"""The hub's truth: PostgreSQL, one module a noun.

Functions take an open connection of `pool` and never commit: the caller's `async with
connection.transaction()` decides what belongs together. Task ids are 16 bytes everywhere.

    pool        connections, and which errors are worth another try
    migrate     the schema, version by version
    agents      who is there: sites, agents, epochs, what they last said
    lanes       both directions' cursors and ledgers; what waits to be sent down
    apply       what came up: result rows, ends of attempts, tasks handed over
    ends        what follows when a task ends: the word to its origin, the call back of its lease
    tasks       submitted, listed, cancelled, asked to run again
    schedule    queued tasks, grants, leases and their loss
    results     result rows, a page or a stream of them
    partitions  months of result rows, made ahead and dropped whole
    leadership  which scheduler may write

Rows are locked in one order everywhere: an up lane, tasks by id, leases, down lanes by agent and name.
"""
