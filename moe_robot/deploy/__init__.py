"""From policy to robot: contract, safety, control loop and backends."""
