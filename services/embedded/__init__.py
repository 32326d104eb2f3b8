"""The embedded mode: broker, store and Ray on this machine."""
