"""What training minimises, one file an objective."""

from nmt.objectives.cross_entropy import CrossEntropy, CrossEntropyConfig
from nmt.objectives.objective import Loss, Objective
from nmt.objectives.soft_beam import SoftBeam, SoftBeamConfig, TemperatureConfig

__all__ = ["CrossEntropy", "CrossEntropyConfig", "Loss", "Objective", "SoftBeam", "SoftBeamConfig", "TemperatureConfig"]
