"""What several configs share."""
