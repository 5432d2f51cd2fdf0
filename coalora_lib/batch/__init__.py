"""Batches: a grid of runs, the engine that makes them on one machine or many, tables of results."""
