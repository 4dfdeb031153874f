"""Benchmark pairs of step distillation."""
