"""The studies. Each stands alone: they do not import each other."""
