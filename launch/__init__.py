"""Where an experiment runs: this machine, a SLURM cluster, TPUs. The experiment does not change; nothing needs JAX."""
