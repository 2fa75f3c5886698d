"""What a run would take, here or on accelerators that are not here. `running.py` has the formulas."""

from launch.plan.running import ProgramPlan, RunPlan, Seconds, plan_run
from launch.plan.where import HERE, Question

__all__ = ["HERE", "ProgramPlan", "Question", "RunPlan", "Seconds", "plan_run"]
