"""The experiment: variants, seeds, statistics, report."""
