"""From settings to a trained model and its scores, one file a task."""
