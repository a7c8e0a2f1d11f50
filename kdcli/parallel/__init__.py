"""Several processes: starting them, signals, collective operations, sharding."""
