"""Where the damage of quantization comes from, and what to keep in higher precision."""

from jaxalign.experiments.damage.recipes import write_recipes
from jaxalign.experiments.damage.study import PlanOptions, plan_study, study_map

__all__ = ["PlanOptions", "plan_study", "study_map", "write_recipes"]
