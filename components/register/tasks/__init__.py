"""What registering a model depends on its task for, a module a task; task.py says what each must have."""

from components.register.tasks import classify, detect, invert
from components.register.tasks.task import Task

TASKS: dict[str, Task] = {"classify": classify, "detect": detect, "invert": invert}
