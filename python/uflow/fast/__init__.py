"""The same numbers in less time: delete this folder and only the time of a prediction changes."""
