"""Rolls policies out in environments and reports what happened, with intervals.

``evaluate(checkpoint, environment, out=...)`` is the whole job; the rooms behind it are :mod:`.episode` (one rollout),
:mod:`.workers` (many at once), :mod:`.journal` (what survives Ctrl-C), :mod:`.statistics` (intervals and tests),
:mod:`.report` and :mod:`.page` (``report.json`` and ``report.html``) and :mod:`.video`.
"""

from moe_robot.evaluation.results import Results
from moe_robot.evaluation.rollout import evaluate

__all__ = ["Results", "evaluate"]
