"""What training minimises, one file an objective."""

from nmt.objectives.bso import BSO, BSOConfig
from nmt.objectives.cross_entropy import CrossEntropy, CrossEntropyConfig
from nmt.objectives.min_risk import MinRisk, MinRiskConfig
from nmt.objectives.objective import Loss, Objective
from nmt.objectives.scheduled_sampling import ScheduledSampling, ScheduledSamplingConfig
from nmt.objectives.soft_beam import SoftBeam, SoftBeamConfig, TemperatureConfig

__all__ = [
    "BSO",
    "BSOConfig",
    "CrossEntropy",
    "CrossEntropyConfig",
    "Loss",
    "MinRisk",
    "MinRiskConfig",
    "Objective",
    "ScheduledSampling",
    "ScheduledSamplingConfig",
    "SoftBeam",
    "SoftBeamConfig",
    "TemperatureConfig",
]
