"""The study of heads: which matter, which drift, and what giving them back would buy."""
