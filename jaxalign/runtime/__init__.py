"""What a run needs of the machine it is on: files, compiled programs, memory, messages."""
