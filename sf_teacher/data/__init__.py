"""The images of a run: found, read, checked, and made into batches.

Neither models nor the loop: a task is only asked how many classes it has and whether it takes a batch.
"""
