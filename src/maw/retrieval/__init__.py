"""Fine-tuning and evaluating dense retrievers on existing engines."""
