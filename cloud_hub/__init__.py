"""The cloud side: everything ends here, in PostgreSQL and on the fleet dashboard.

agents ==(lanes over MQTT)==> gateway -> store (PostgreSQL) <- api <- REST clients
                               ^            |
                               |            v
                             leases <- scheduler (policy: pure)
"""
