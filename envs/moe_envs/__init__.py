"""MuJoCo worlds as Gymnasium environments."""


def register() -> None:
    """Register the environments (called by Gymnasium through its entry points)."""
