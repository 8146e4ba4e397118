"""Several devices and processes: meshes, the placement of arrays on them, and how processes share the work."""
