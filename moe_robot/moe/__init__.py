"""The mixture-of-experts library: routing, experts, dispatch, losses, reports (torch only)."""
