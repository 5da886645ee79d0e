"""A simulated world behind a rosbridge server, as if it were a robot."""
