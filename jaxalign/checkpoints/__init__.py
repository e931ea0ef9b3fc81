"""What the files of a published model hold, and how they are read."""
