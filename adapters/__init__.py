"""Adapters that let existing distillation toolboxes use and train student-friendly teachers."""
