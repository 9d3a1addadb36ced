"""Using trained factors: prediction, and files for other code."""
