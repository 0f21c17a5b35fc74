"""Teachers: what a teacher is, and the objectives that its hash head learns or is solved by."""
