"""The same script run by the reference and by Mainspring (with `compat="5"`): the numbers must be equal."""
