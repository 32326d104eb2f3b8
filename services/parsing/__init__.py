"""The parsing service: from tagged lines to candidates."""
