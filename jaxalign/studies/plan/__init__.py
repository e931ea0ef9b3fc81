"""Where a scheme does its damage, and what to keep in 16 bit within a budget."""
