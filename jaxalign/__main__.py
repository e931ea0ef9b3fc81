"""``python -m jaxalign``: the command where it is not on the path."""

from jaxalign.commands.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
