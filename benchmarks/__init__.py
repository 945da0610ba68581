"""The scripts behind every number in the README, and what was tried (README.md)."""
