"""The hub's truth: PostgreSQL, one module a noun.

Functions take an open connection of `pool` and never commit: the caller's `async with
connection.transaction()` decides what belongs together (`results.stream` says why it does otherwise).
Task ids are 16 bytes everywhere.

    pool        connections, and which errors are worth another try
    migrate     the schema, version by version; schema.sql shows it whole
    agents      who is there: sites, agents, epochs, what they last said
    lanes       both directions' cursors and ledgers; what waits to be sent down
    apply       what came up: result rows, ends of attempts, tasks handed over
    tasks       submitted, listed, cancelled, asked to run again, forgotten
    schedule    queued tasks, grants, leases and their loss
    results     result rows, a page or a stream of them
    partitions  months of result rows, made ahead and dropped whole
    leadership  which scheduler may write
    models      versions of models, and who vouches for them
    targets     which agents are to serve which version
    blobs       what packages are made of, piece by piece

    verdicts    what a report, a lost lease or a wish means for a task: pure
    ends        where tasks change, and what follows: the word to an origin, the call back of a lease
    outgoing    records numbered at the end of a down lane, and composed when they are sent
    copy, arrow, ids, sql       Arrow in and out, task ids, the files of named SQL blocks

Locks are taken in one order: an up lane, tasks by id, leases, the places of origins, down lanes by agent
and name. Where two transactions meet in another order all the same (rows of one batch against those of
another), PostgreSQL chooses one, and the other gets an error of `pool.UNAVAILABLE`.
"""
