"""What programs that follow a running service import. Imports the vocabulary alone."""
