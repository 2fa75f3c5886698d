"""Training: experiments, jobs, the compiled cohort step, the schedule of slots, and the loop."""

from specialize.train.experiment import CohortConfig, Experiment
from specialize.train.jobs import HyperParameters, Job
from specialize.train.joint import SpacePlan, SpaceRun, SpaceTraining, plan_space
from specialize.train.joint_loop import train_space
from specialize.train.loop import CohortTrainer, Finished
from specialize.train.planning import Plan, plan
from specialize.train.pretrain import Pretraining, PretrainRun, pretrain
from specialize.train.programs import train
from specialize.train.run import Run
from specialize.train.runs import linear_space_of, open_run
from specialize.train.schedule import Schedule, Stopping
from specialize.train.step import Cohort

__all__ = [
    "Cohort",
    "CohortConfig",
    "CohortTrainer",
    "Experiment",
    "Finished",
    "HyperParameters",
    "Job",
    "Plan",
    "PretrainRun",
    "Pretraining",
    "Run",
    "Schedule",
    "SpacePlan",
    "SpaceRun",
    "SpaceTraining",
    "Stopping",
    "linear_space_of",
    "open_run",
    "plan",
    "plan_space",
    "pretrain",
    "train",
    "train_space",
]
