"""Several processes of one run: how they start and find each other, and notice that one is gone."""
