"""The edge: from a device's message to its reply, and the uplink to the cloud.

    intake -> journal -> batcher -> engine -> journal -+-> replies
                 |                                     |
                 | overflow                            | results
                 v                                     v
                uplink (lanes over MQTT) ============> the hub

The same agent is the cloud pool's executor; there its work comes down as leases only.
"""
