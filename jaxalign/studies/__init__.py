"""One folder a study, with the same file names in each."""
