"""`make bench-gpu`: everything that is asked of a GPU, in one command and eight minutes."""
