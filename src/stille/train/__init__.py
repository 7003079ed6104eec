"""Training: data, losses, one loop for pretraining and distillation, on one device or many.

>>> from stille.train import TrainConfig, byte_tokenizer, prepare, train
"""

from stille.train.config import DISTILL, LossWeights, TrainConfig
from stille.train.data import TokenStore, prepare
from stille.train.evaluate import evaluate
from stille.train.loop import Progress, Result, train
from stille.train.text import byte_tokenizer
from stille.train.weights import World, open_world

__all__ = [
    "DISTILL",
    "LossWeights",
    "Progress",
    "Result",
    "TokenStore",
    "TrainConfig",
    "World",
    "byte_tokenizer",
    "evaluate",
    "open_world",
    "prepare",
    "train",
]
