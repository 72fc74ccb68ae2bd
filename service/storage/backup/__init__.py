"""Backup, restore and verification of an installation."""
