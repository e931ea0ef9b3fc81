"""Devices of one run: their mesh, sharded parameters, and rows assigned to each device."""
