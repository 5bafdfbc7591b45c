"""What makes it dependable: run folders, flags, several processes, export. Nothing here is about circuits."""
