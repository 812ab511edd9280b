"""TensorRT's engines: built in processes beside the agent, kept on disk, taken when they are ready.

Building one takes seconds to many minutes and much memory, and TensorRT may crash at it. So another process
does it (`builder`, `program`) while the graph runs by other means, and it is there the next time (`cache`)
for the same graph on the same machine (`identity`, `host`). `builds` decides what is built when.
"""
