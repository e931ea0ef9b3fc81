"""Devices and processes of a run: the mesh, the start of several processes, their peers."""
