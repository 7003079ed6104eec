"""Standard tasks answered by likelihood, and texts: what a model can do, and what it retains of its base.

The user brings the data (docs/evals.md says from where); nothing is downloaded.
"""

from stille.evals.quality import report
from stille.evals.quality.answers import VERSION, Subject, TextResult, metrics, run, texts
from stille.evals.quality.items import Item
from stille.evals.quality.retention import Retention, TaskRetention, compare
from stille.evals.quality.tasks import SEED, TASKS, Task, load_items, select_tasks
from stille.evals.quality.text import Window, load_windows

__all__ = [
    "SEED",
    "TASKS",
    "VERSION",
    "Item",
    "Retention",
    "Subject",
    "Task",
    "TaskRetention",
    "TextResult",
    "Window",
    "compare",
    "load_items",
    "load_windows",
    "metrics",
    "report",
    "run",
    "select_tasks",
    "texts",
]
