"""What is trained to be compared with, and not served."""
