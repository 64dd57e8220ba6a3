"""Distillation: a finished model that guides a larger one."""
