"""What inference costs, part by part."""
