"""Files from outside: the guards against hostile ones, and the reader of JSON."""
