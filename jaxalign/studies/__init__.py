"""One folder a study, the same file names in each; studies do not import each other."""
