"""RULER's 13 long-context tasks, generated offline.

After "RULER: What's the Real Context Size of Your Long-Context Language Models?" (arXiv:2404.06654; NVIDIA/RULER,
Apache-2.0): its tasks, parameters, prompt templates, answer lengths and scores. The code, the word lists and what
stands in for texts that cannot be bundled (Paul Graham's essays, SQuAD, HotpotQA) are our own; docs/evals.md lists the
differences. Figures are therefore comparable between settings of a model, not with published ones.
"""

from stille.evals.ruler.fit import Encoder
from stille.evals.ruler.samples import SEED, Sample, load_samples, make_sample, make_samples, save_samples, score
from stille.evals.ruler.tasks import TASKS, Task, select_tasks

__all__ = [
    "SEED",
    "TASKS",
    "Encoder",
    "Sample",
    "Task",
    "load_samples",
    "make_sample",
    "make_samples",
    "save_samples",
    "score",
    "select_tasks",
]
