"""The tasks, a file a family; `lmforge.recipe.evaluate.TASK_MODULES` lists them."""
