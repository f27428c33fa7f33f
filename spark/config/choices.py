"""What a setting may say, where it is one of a few words.

Apart from the code that acts on them, so that commands answer before torch is imported, which takes seconds.
"""

from __future__ import annotations

DEFAULT_METHOD = "spark"
SCRATCH, TIMM = "scratch", "timm:"  # of what `init=` may say; else it is a path
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("lamb", "adamw")
DEFAULT_COURSE = "spark"
COURSES = (DEFAULT_COURSE, "mae", "simmim", "simmim_steps")  # of the learning rate
ON_DIVERGENCE = ("stop", "rollback")
FORMATS = ("timm", "torchvision", "detectron2", "mmpretrain", "official-convnext", "original-fcmae", "original-spark")
