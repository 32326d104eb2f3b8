"""What training fits and selection serves."""
