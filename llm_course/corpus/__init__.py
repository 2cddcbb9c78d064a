"""Text and labelled tasks: the generated Town, and readers of files and hub data sets."""
