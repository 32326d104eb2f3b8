"""Embedded mode: broker, store and Ray on this machine."""
