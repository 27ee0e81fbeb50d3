"""Every venue behind one form: the port, and the exchanges that implement it."""
