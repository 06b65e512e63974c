"""Ends before it is ready, with code 3."""

import sys

print("reading the configuration", flush=True)
print("no database at db.invalid", flush=True)
sys.exit(3)
