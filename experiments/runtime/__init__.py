"""Holds what every task needs: the command line, the check of options, processes, provenance and progress."""
