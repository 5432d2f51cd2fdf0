"""A test bed for the search: losses with a known Pareto front, and strategies compared on them."""
