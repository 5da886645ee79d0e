"""A policy served to many robots over websockets: wire format, checks, batching, the policy's process, metrics."""
