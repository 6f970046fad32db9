"""Keeps the run's processes at work: one lifecycle for actors, evaluator, learner and replay server.

Imports nothing itself: what runs in one process uses the budgets of restarts without importing Ray.
"""
