"""Training of the perception model from rendered clips.

>>> from stille.video.training import VideoTrainConfig, train
"""

from stille.video.training.config import LossWeights, VideoTrainConfig
from stille.video.training.loop import Progress, Result, Source, train
from stille.video.training.metrics import judge, watch

__all__ = ["LossWeights", "Progress", "Result", "Source", "VideoTrainConfig", "judge", "train", "watch"]
