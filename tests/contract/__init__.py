"""The drop-in promise: what scripts, subclasses and callbacks written for the reference rely on."""
