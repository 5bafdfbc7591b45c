"""What makes it dependable: files, run folders, flags, several processes."""
