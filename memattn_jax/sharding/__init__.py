"""Several devices and several processes: meshes, where arrays lie on them, and how processes share the work."""
