"""What a ranking is worth: measures, models and run files judged by them, and the metric on the dev split."""
