"""The commands of training, scoring and folders. Each imports what it needs when it is called."""

from specialize.commands.experiments import KindName, experiment_of, load_experiment

__all__ = ["KindName", "experiment_of", "load_experiment"]
