"""What both sides of Backhaul must agree on: words, states, topics, the wire and the lanes.

Nothing here imports `edge_agent` or `cloud_hub`, and nothing does I/O beyond the MQTT link itself.
"""
