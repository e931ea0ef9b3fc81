"""``python cli.py``: the jaxalign command from a checkout."""

from jaxalign.commands.entry import main

if __name__ == "__main__":
    raise SystemExit(main())
