"""What broker/ports.py promises, on every engine."""
